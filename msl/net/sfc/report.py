"""What the agent of a host tells of it: SIDs, paths, flows, links, and dropped packets; plain values."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

from msl.net.sfc import layout, routes
from msl.net.sfc.proxy import interface_index
from msl.net.sfc.routes import routers_behind

if TYPE_CHECKING:
    from msl.net.sfc.agent import HostAgent

MOST_FLOWS = 200


@dataclass(frozen=True)
class LinkReport:
    """An interface to the SR domain."""

    interface: str
    mtu: int
    rate_mbit: float | None
    """Of its shaper; None without one."""
    bytes_in: int
    bytes_out: int
    drops: int
    """Packets that the interface or its queue dropped."""
    routers: tuple[str, ...] = ()
    """Of the domain, that are reached over it."""


@dataclass(frozen=True)
class SidReport:
    """A SID, and what went through it since its chain was set up."""

    sid: str
    kind: str
    chain: str
    packets: tuple[int, ...]
    """By `layout.Way`."""
    bytes: tuple[int, ...]


@dataclass(frozen=True)
class PathReport:
    """A head-end's path."""

    service: str
    segments: tuple[str, ...]
    generation: int


@dataclass(frozen=True)
class ChangeReport:
    """A change of a chain's path."""

    at: float
    """When, in seconds since the epoch."""
    by: str
    """`hand`, or the controller."""
    before: str
    """The path, in words."""
    after: str
    reason: str
    first_packet_ms: float | None
    """From the change until a packet took the new way; None if none came and the hops were told."""
    took_ms: float
    """From the decision until every hop had the new path."""


@dataclass(frozen=True)
class FlowReport:
    """A connection that passes the host."""

    client: str
    service: str
    segments: tuple[str, ...]
    """The path that its packets came by."""
    generation: int
    idle_s: float
    packets: tuple[int, ...]
    bytes: tuple[int, ...]


@dataclass(frozen=True)
class HostReport:
    """All that a host's agent tells."""

    host: str
    locator: str
    inner_mtu: int
    monotonic_s: float
    """When it was made, by the host's clock."""
    links: tuple[LinkReport, ...]
    sids: tuple[SidReport, ...]
    paths: tuple[PathReport, ...]
    flows: tuple[FlowReport, ...]
    """At most `MOST_FLOWS` of them."""
    num_flows: int
    num_embryos: int
    drops: Mapping[str, int]
    """Packets that the proxy dropped, by reason."""
    changes: Mapping[int, tuple[ChangeReport, ...]]
    """Of the paths of chains that begin here, by chain."""
    controllers: Mapping[int, str]
    """Who steers them."""


def report_of(
    agent: HostAgent, changes: Mapping[int, tuple[ChangeReport, ...]], controllers: Mapping[int, str]
) -> HostReport:
    """Ask the kernel how a host is.

    Args:
        agent: of the host.
        changes: of paths, as they were noted down.
        controllers: of chains.
    """
    proxy = agent.proxy
    flows = list(proxy.table("flows").items())
    with IPRoute() as netlink:
        behind = routers_behind(netlink, agent.interfaces, {it.name: it.sid for it in agent.domain.routers})
        links = tuple(_link(netlink, name, behind[name]) for name in agent.interfaces)
        paths = tuple(
            PathReport(str(head.service), tuple(map(str, head.segments)), head.generation)
            for head in routes.head_ends(netlink)
        )
    return HostReport(
        host=agent.host.name,
        locator=str(agent.host.locator),
        inner_mtu=agent.inner_mtu,
        monotonic_s=time.monotonic(),
        links=links,
        sids=tuple(_sids(agent)),
        paths=paths,
        flows=tuple(_flow(agent, key, flow) for key, flow in flows[:MOST_FLOWS]),
        num_flows=len(flows),
        num_embryos=len(proxy.table("embryos").keys()),
        drops=proxy.drops(),
        changes=changes,
        controllers=controllers,
    )


def _link(netlink: IPRoute, name: str, routers: tuple[str, ...]) -> LinkReport:
    index = interface_index(netlink, name)
    link = netlink.link("get", index=index)[0]
    counts = link.get_attr("IFLA_STATS64")
    rate, dropped = shaper_of(netlink, index)
    return LinkReport(
        interface=name,
        mtu=link.get_attr("IFLA_MTU"),
        rate_mbit=rate,
        bytes_in=counts["rx_bytes"],
        bytes_out=counts["tx_bytes"],
        drops=counts["rx_dropped"] + counts["tx_dropped"] + dropped,
        routers=routers,
    )


def shaper_of(netlink: IPRoute, index: int) -> tuple[float | None, int]:
    """Rate of the interface's tbf in Mbit/s, if it has one, and what it dropped."""
    for queue in netlink.get_qdiscs(index=index):
        if queue.get_attr("TCA_KIND") == "tbf":
            options = queue.get_attr("TCA_OPTIONS")
            rate = options.get_attr("TCA_TBF_RATE64") or options.get_attr("TCA_TBF_PARMS")["rate"]
            dropped = queue.get_attr("TCA_STATS")
            return rate * 8 / 1e6, int(dropped["drop"]) if dropped is not None else 0
    return None, 0


def _sids(agent: HostAgent) -> list[SidReport]:
    found = []
    for key, entry in agent.proxy.table("sids").items():
        if entry.kind in (layout.Kind.TURN, layout.Kind.PROBES):
            continue
        traffic = agent.proxy.traffic(entry.index)
        chain = str(entry.service) if entry.kind != layout.Kind.HEAD else "all"
        kind = layout.Kind(entry.kind).name.lower()
        found.append(SidReport(str(key), kind, chain, tuple(traffic.packets), tuple(traffic.bytes)))
    return sorted(found, key=lambda sid: sid.sid)


def _flow(agent: HostAgent, key: layout.FlowKey, flow: layout.FlowEntry) -> FlowReport:
    path = agent.proxy.table("paths").get(ctypes.c_uint64(flow.path))
    client_port, service_port = key.ports
    return FlowReport(
        client=_endpoint(str(key.client), client_port),
        service=_endpoint(str(key.service), service_port),
        segments=tuple(map(str, path.arrival.travel)) if path is not None else (),
        generation=path.arrival.generation if path is not None else 0,
        idle_s=max(0.0, (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - flow.last_seen) / 1e9),
        packets=tuple(flow.packets),
        bytes=tuple(flow.bytes),
    )


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}"
