"""Packets that an NSF's host should not be impressed by, and a way to put them on its link."""

from __future__ import annotations

import itertools
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address

from pyroute2 import IPRoute

from msl.net.sfc.proxy import interface_index
from msl.plan.steering import ChainPlan, DomainPlan, Stop
from tests.net import packets
from tests.net.chain import Chains
from tests.net.packets import Ends, encapsulated, frame, icmpv6, ipv6, srh, tcp, udp

_ETH_P_IPV6 = 0x86DD
_OUTER = packets.ETH_LEN + packets.IP_LEN
_QDISC_BYPASS = 20  # PACKET_QDISC_BYPASS; the socket module lacks it
_BATCH = 200
"""What a receiving CPU's queue of 1,000 packets surely takes beside the good traffic."""


@dataclass
class Hostile:
    """Builds packets against one NSF, out of what its good packets look like.

    Args:
        domain: the SR domain.
        chain: the chain.
        stop: the NSF.
        client: a good flow's client.
    """

    domain: DomainPlan
    chain: ChainPlan
    stop: Stop
    client: tuple[IPv6Address, int]

    def __post_init__(self) -> None:
        self._random = random.Random(7)
        self._travel = self.chain.segments
        self._left = len(self._travel) - 1 - self._travel.index(self.stop.sid)
        self._head = self.domain.host(self.chain.source).decap

    @property
    def dropped(self) -> Mapping[str, list[Callable[[], bytes]]]:
        """By reason: what must be dropped for it."""
        other = self.chain.stops[-1].sid
        swapped = (self._travel[1], self._travel[0], *self._travel[2:])
        without_one = (self._travel[0], *self._travel[2:])
        return {
            "truncated": [
                lambda: self._good()[: self._random.randrange(14 + 40, 14 + 40 + 8 + 16 * len(self._travel))]
            ],
            "bad_srh": [
                lambda: self._outer(srh(self._travel, self._random.randrange(len(self._travel), 256)) + self._inner()),
                lambda: self._outer(srh(self._travel, self._left, hdr_ext_len=self._not(2 * len(self._travel)))),
                lambda: self._outer(srh(self._travel, self._left, last_entry=self._not(len(self._travel) - 1))),
                lambda: self._outer(srh(self._travel, self._left, tlvs=bytes(8)) + self._inner()),
            ],
            "not_ipv6": [lambda: self._outer(self._srh(next_header=packets.ROUTING) + self._srh() + self._inner())],
            "not_active": [lambda: self._outer(srh(self._travel, 0) + self._inner())],
            "sl_zero": [lambda: self._outer(srh((other, self.stop.sid), 0) + self._inner())],
            "no_srh": [lambda: frame(tcp((self._head, 1, self.stop.sid, self.chain.port)))],
            "outside": [lambda: self._outer(self._srh() + self._inner(), source=self._stranger())],
            "unknown_sid": [lambda: self._outer(self._srh() + self._inner(), to=self._unknown_sid())],
            "fragment": [lambda: self._good(self._fragment())],
            "not_tcp": [lambda: self._good(udp(self._ends()))],
            "service": [lambda: self._good(tcp((*self.client, self._stranger(), self.chain.port)))],
            "no_flow": [lambda: self._good(tcp(packets.mirrored((self._stranger(), 1, *self._service()))))],
            "outer_error": [lambda: frame(icmpv6(self.domain.routers[0].sid, self.stop.sid, self._good()[14:]))],
            # Copies of a good flow's packets that went astray.
            "wrong_path": [
                lambda: encapsulated(self._head, swapped, len(swapped) - 2, self._inner(), tag=self._later()),
                lambda: encapsulated(self._head, without_one, len(without_one) - 1, self._inner(), tag=self._later()),
            ],
        }

    def overtaken(self) -> bytes:
        """Of a good flow, on a wrong path, but older than the present one: it may arrive, and teaches nothing."""
        swapped = (self._travel[1], self._travel[0], *self._travel[2:])
        return encapsulated(self._head, swapped, len(swapped) - 2, self._inner(), tag=0xFF00)

    def syn(self) -> bytes:
        """The beginning of a connection from a client that does not exist."""
        ends = (self._stranger(), self._random.randrange(1024, 65536), *self._service())
        return self._good(tcp(ends, packets.SYN, sequence=self._random.getrandbits(32)))

    def _good(self, inner: bytes | None = None) -> bytes:
        return encapsulated(self._head, self._travel, self._left, inner or self._inner())

    def _outer(self, payload: bytes, *, source: IPv6Address | None = None, to: IPv6Address | None = None) -> bytes:
        return frame(ipv6(source or self._head, to or self.stop.sid, packets.ROUTING, payload))

    def _srh(self, next_header: int = packets.IPV6) -> bytes:
        return srh(self._travel, self._left, next_header=next_header)

    def _inner(self) -> bytes:
        flags = self._random.choice([packets.ACK, packets.ACK | packets.PSH, packets.RST, packets.FIN | packets.ACK])
        return tcp(self._ends(), flags, self._random.randbytes(20), self._random.getrandbits(32))

    def _fragment(self) -> bytes:
        source, _, destination, _ = self._ends()
        return ipv6(source, destination, packets.FRAGMENT, bytes([packets.TCP, 0, 0, 1]) + self._random.randbytes(44))

    def _ends(self) -> Ends:
        return (*self.client, *self._service())

    def _service(self) -> tuple[IPv6Address, int]:
        return self.chain.service, self.chain.port

    def _stranger(self) -> IPv6Address:
        return IPv6Address((0x20010DB8 << 96) | self._random.getrandbits(64))

    def _unknown_sid(self) -> IPv6Address:
        return IPv6Address(int(self.stop.sid) ^ self._random.randrange(1, 1 << 16))

    def _later(self) -> int:
        return self._random.randrange(0x0100, 0x7F00)

    def _not(self, value: int) -> int:
        return self._random.choice([other for other in range(256) if other != value])


class Injector:
    """Puts frames on a router's link to a host.

    Args:
        chains: the testbed.
        router: name of the router.
        host: name of the host.
    """

    def __init__(self, chains: Chains, router: str, host: str) -> None:
        index = [there.name for there in chains.domain.hosts].index(host)
        interface = f"h{index}"
        plane = [there.name for there in chains.domain.routers].index(router) + 1
        self._macs = chains.inside(host, lambda: _mac(f"fab{plane}")) + chains.inside(router, lambda: _mac(interface))
        self._socket = chains.inside(router, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        self._socket.setsockopt(263, _QDISC_BYPASS, 1)  # SOL_PACKET
        chains.inside(router, lambda: self._socket.bind((interface, _ETH_P_IPV6)))

    def send(self, packet: bytes) -> None:
        self._socket.send(self._macs + packet[12:])

    def close(self) -> None:
        self._socket.close()


def _mac(interface: str) -> bytes:
    with IPRoute() as netlink:
        link = netlink.link("get", index=interface_index(netlink, interface))[0]
    return bytes.fromhex(link.get_attr("IFLA_ADDRESS").replace(":", ""))


def inject(injector: Injector, build: Iterator[bytes], counted: Callable[[], int], timeout_s: float = 10.0) -> int:
    """Put packets on a link, a batch at a time, each when the one before has been counted; how many there were."""
    before = counted()
    sent = 0
    while True:
        batch = list(itertools.islice(build, _BATCH))
        if not batch:
            return sent
        for packet in batch:
            injector.send(packet)
        sent += len(batch)
        deadline = time.monotonic() + timeout_s
        while counted() - before < sent:
            assert time.monotonic() < deadline, f"{sent} packets sent, {counted() - before} counted"
            time.sleep(0.001)
