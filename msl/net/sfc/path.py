"""The path of a running chain at one host: changed at its head-end, turned back at its stops, learnt by its flows.

The head-end's new segment list travels in the next packet, and each proxy on the way learns it from there. What cannot
be learnt so, these functions do: ways back that do not mirror those forward, and hops that have nothing to send.
"""

from __future__ import annotations

import socket
import struct
import time
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

from msl.errors import NetworkError
from msl.net.sfc import layout, routes
from msl.net.sfc.maps import run_program
from msl.plan.addressing import SegmentList, Sid
from msl.plan.steering import ChainPlan, Stop

if TYPE_CHECKING:
    from msl.net.sfc.agent import HostAgent

_POLL_S = 0.001
_ROUTING, _IPV6, _TCP = 43, 41, 6
_ACK = 0x10
_ETHERNET = bytes(12) + b"\x86\xdd"


def head_end(agent: HostAgent, number: int) -> routes.HeadEnd:
    """At the source's host: a chain's path as it stands.

    Raises:
        NetworkError: the chain does not begin here, or its route is gone.
    """
    chain = _chain_from_here(agent, number)
    with IPRoute() as netlink:
        for head in routes.head_ends(netlink):
            if head.service == chain.service:
                return head
    raise NetworkError(f"host {agent.host.name}: the route of chain {number} is gone")


def change(agent: HostAgent, number: int, segments: SegmentList, known: int | None = None) -> int:
    """At the source's host: change a chain's path from the next packet on.

    Args:
        agent: of that host.
        number: of the chain.
        segments: the new path.
        known: generation of the path that the change was decided for; None if that does not matter.

    Returns:
        The generation of the new path.

    Raises:
        NetworkError: the chain does not begin here, the list does not pass its NSFs, or the path is another one by now.
    """
    chain = _chain_from_here(agent, number)
    if tuple(sid for sid in segments if sid in chain.sids) != chain.sids or segments[-1] != chain.sids[-1]:
        wanted = ", ".join(map(str, chain.sids))
        raise NetworkError(f"chain {number}: a path must pass the SIDs {wanted} in this order and end there")
    if len(segments) > agent.domain.max_segments:
        raise NetworkError(
            f"chain {number}: a path of {len(segments)} segments is longer than sr.max_segments"
            f" ({agent.domain.max_segments})"
        )
    present = head_end(agent, number).generation
    if known is not None and known != present:
        raise NetworkError(f"chain {number}: somebody else has changed the path meanwhile; look at it again")
    generation = (present + 1) & 0xFFFF
    agent.set_path(chain.service, segments, generation)
    return generation


def set_return(agent: HostAgent, number: int, hop: int, segments: SegmentList | None, generation: int) -> None:
    """At the host of a hop's far end: have its answers take a way of their own.

    Args:
        agent: of that host.
        number: of the chain.
        hop: from 0, the one between the source and the first stop.
        segments: see `msl.plan.paths.return_segments`; None: the way forward, mirrored.
        generation: of the path that this is a part of.

    Raises:
        NetworkError: the stop is not on this host.
    """
    stop = _stop_here(agent, number, hop)
    local = layout.Address.of(stop.service)
    services, returns = agent.proxy.table("services"), agent.proxy.table("returns")
    entry = services.get(local)
    if entry is None:
        raise NetworkError(f"host {agent.host.name}: chain {number} is not set up")
    if segments is not None:
        returns.put(local, back_over(stop.sid, segments, generation))
    entry.has_return = int(segments is not None)
    services.put(local, entry)
    if segments is None:
        returns.remove(local)


def returns_here(agent: HostAgent, number: int) -> dict[int, SegmentList]:
    """The ways back of hops that end here, by hop, where they are ways of their own."""
    chain = agent.chains.get(number)
    found: dict[int, SegmentList] = {}
    for hop, stop in enumerate(chain.stops if chain is not None else ()):
        if stop.host == agent.host.name:
            local = layout.Address.of(stop.service)
            entry, back = agent.proxy.table("services").get(local), agent.proxy.table("returns").get(local)
            if entry is not None and entry.has_return and back is not None:
                found[hop] = tuple(Sid(back.outer.segments[i].ip) for i in range(back.count - 1, -1, -1))
    return found


def back_over(source: IPv6Address, segments: SegmentList, generation: int) -> layout.Back:
    """The headers of answers over a segment list."""
    last = len(segments) - 1
    outer = layout.Outer()
    header = struct.pack("!IHBB", 6 << 28, 0, _ROUTING, 64) + source.packed + segments[0].packed
    outer.ip[:] = header
    fields = (_IPV6, 2 * len(segments), 4, last, last, 0)
    outer.srh = layout.Srh(*fields, socket.htons(generation))
    for index, segment in enumerate(reversed(segments)):
        outer.segments[index] = layout.Address.of(segment)
    return layout.Back(outer, len(segments))


def teach(agent: HostAgent, number: int, segments: SegmentList, generation: int) -> int:
    """At a stop's host: let flows learn a path that no packet has brought yet.

    A hop whose way is dead may have nothing to send, and then its far end would never learn of another way: neither
    would its answers arrive. So the proxy is shown the packet that would have come. Nothing is delivered or sent.

    Returns:
        How many flows have learnt it.
    """
    chain = agent.chains.get(number)
    if chain is None:
        return 0
    taught = 0
    for stop in _stops_here(agent, chain):
        for key, flow in agent.proxy.table("flows").items():
            behind = (generation - flow.generation) & 0xFFFF
            if key.service.ip == stop.service and 0 < behind < 0x8000:
                frame = _would_come(agent, chain, stop, key, segments, generation)
                run_program(agent.proxy.program("ingress"), frame)
                taught += 1
    return taught


def await_path(agent: HostAgent, number: int, generation: int, timeout_s: float) -> bool:
    """At a stop's host: wait until a packet has come over a chain's new path; False if none has within `timeout_s`."""
    chain = agent.chains.get(number)
    services = {stop.service for stop in _stops_here(agent, chain)} if chain is not None else set()
    deadline = time.monotonic() + timeout_s
    while True:
        flows = agent.proxy.table("flows")
        for key in flows:
            if key.service.ip in services:
                flow = flows.get(key)
                if flow is not None and flow.generation == generation:
                    return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)


def _chain_from_here(agent: HostAgent, number: int) -> ChainPlan:
    chain = agent.chains.get(number)
    if chain is None or chain.source != agent.host.name:
        raise NetworkError(f"host {agent.host.name}: chain {number} does not begin here")
    return chain


def _stops_here(agent: HostAgent, chain: ChainPlan) -> list[Stop]:
    return [stop for stop in chain.stops if stop.host == agent.host.name]


def _stop_here(agent: HostAgent, number: int, hop: int) -> Stop:
    chain = agent.chains.get(number)
    stop = chain.stops[hop] if chain is not None and hop < len(chain.stops) else None
    if stop is None or stop.host != agent.host.name:
        raise NetworkError(f"host {agent.host.name}: hop {hop} of chain {number} does not end here")
    return stop


def _would_come(
    agent: HostAgent, chain: ChainPlan, stop: Stop, key: layout.FlowKey, segments: SegmentList, generation: int
) -> bytes:
    """An acknowledgment of the flow, as it would arrive at a stop over a segment list."""
    last = len(segments) - 1
    left = last - segments.index(stop.sid)
    client_port, service_port = key.ports
    tcp = struct.pack("!HHIIBBHHH", client_port, service_port, 0, 0, 5 << 4, _ACK, 0, 0, 0)
    inner = struct.pack("!IHBB", 6 << 28, len(tcp), _TCP, 64) + key.client.ip.packed + chain.service.packed + tcp
    srh = struct.pack("!BBBBBBH", _IPV6, 2 * len(segments), 4, left, last, 0, generation)
    srh += b"".join(segment.packed for segment in reversed(segments))
    source = agent.domain.host(chain.source).decap
    outer = struct.pack("!IHBB", 6 << 28, len(srh) + len(inner), _ROUTING, 64) + source.packed + stop.sid.packed
    return b"".join((_ETHERNET, outer, srh, inner))
