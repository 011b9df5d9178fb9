"""Addresses of an SR domain: a locator per node, a SID per place in a chain, a service address per chain.

Everything is derived from one /48 block and counts nodes and chains. With the default block, on host number 2:

    fd00:6d73:6c:2::/64          the host's locator
    fd00:6d73:6c:2::1            the host itself
    fd00:6d73:6c:2:2::           End.DT6: takes the outer header off what comes back to a head-end
    fd00:6d73:6c:2:3::           End: where probes of other hosts turn
    fd00:6d73:6c:2:4::           where the host's own probes end
    fd00:6d73:6c:2:101:1::       chain 1, hop 1: an NSF
    fd00:6d73:6c:ffff:1::100     the service address of chain 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from itertools import pairwise
from typing import NewType

from msl.errors import ConfigError

Sid = NewType("Sid", IPv6Address)
"""A segment identifier: an address that stands for a function of a node (RFC 8986)."""
Locator = NewType("Locator", IPv6Network)
"""The /64 from which a node's SIDs are taken; routed to that node."""
SegmentList = tuple[Sid, ...]
"""Segments in travel order. (An SRH carries them in reverse.)"""

END = 0x1
"""Function of a router's SID: End, a waypoint."""
DECAP = 0x2
"""Function of a host's own SID: End.DT6, where a head-end's replies end."""
TURN = 0x3
"""Function of a host's own SID: End, where probes turn."""
PROBES = 0x4
"""Function of a host's own SID: where its probes end."""
FIRST_CHAIN = 0x100
"""Functions from here on are of chain (function - FIRST_CHAIN)."""
FIRST_ROUTER = 0xF00
"""Nodes from here on are routers."""
MAX_CHAINS = 0xFE00
MAX_HOSTS = FIRST_ROUTER - 1
MAX_ROUTERS = 0xFF
MAX_SEGMENTS = 16
"""Most segments of a list: what the SFC proxy in `bpf/` holds."""
_SERVICES = 0xFFFF
_TAIL = 0x100


@dataclass(frozen=True)
class SrDomain:
    """An SR domain: the block that all its SIDs are taken from (RFC 8754 section 5)."""

    block: IPv6Network

    def host_locator(self, index: int) -> Locator:
        """Locator of a host; `index` counts from 0."""
        if not 0 <= index < MAX_HOSTS:
            raise ConfigError(f"an SR domain has at most {MAX_HOSTS} hosts")
        return self._locator(index + 1)

    def router_locator(self, index: int) -> Locator:
        """Locator of a router; `index` counts from 0."""
        if not 0 <= index < MAX_ROUTERS:
            raise ConfigError(f"an SR domain has at most {MAX_ROUTERS} routers")
        return self._locator(FIRST_ROUTER + 1 + index)

    def service_address(self, chain: int) -> IPv6Address:
        """Default service address of a chain; chains count from 1."""
        if not 1 <= chain <= MAX_CHAINS:
            raise ConfigError(f"an SR domain has at most {MAX_CHAINS} chains")
        return IPv6Address(int(self._locator(_SERVICES)[0]) | chain << 48 | _TAIL)

    def _locator(self, node: int) -> Locator:
        return Locator(IPv6Network((int(self.block[0]) | node << 64, 64)))


def node_address(locator: Locator) -> IPv6Address:
    """The node's own address: for its ordinary traffic in the fabric."""
    return locator[1]


def end_sid(router: Locator) -> Sid:
    """SID of a router's End."""
    return _sid(router, END, 0)


def decap_sid(host: Locator) -> Sid:
    """SID of a host's End.DT6; the outer source address of what its head-end sends."""
    return _sid(host, DECAP, 0)


def turn_sid(host: Locator) -> Sid:
    """SID of a host's End: a probe that another host sends passes it on its way back."""
    return _sid(host, TURN, 0)


def probes_sid(host: Locator) -> Sid:
    """SID at which a host's own probes end."""
    return _sid(host, PROBES, 0)


def chain_sid(host: Locator, chain: int, hop: int) -> Sid:
    """SID of a place in a chain: an NSF or the sink."""
    return _sid(host, FIRST_CHAIN + chain, hop)


def _sid(locator: Locator, function: int, argument: int) -> Sid:
    return Sid(IPv6Address(int(locator[0]) | function << 48 | argument << 32))


def alias(service: IPv6Address, index: int) -> IPv6Address:
    """The service address as the host's NSF number `index` sees it; number 0 sees the address itself.

    Several NSFs of a chain on one host would otherwise have sockets with the same two addresses and ports. The
    alias has the same ones' complement sum as the address (the trick of RFC 6296 section 2.6), so that the TCP
    checksum of a packet whose service address is exchanged stays right.

    Raises:
        ConfigError: the address leaves no room for so many.
    """
    high, low = int(service) >> 16 & 0xFFFF, int(service) & 0xFFFF
    if high + index > 0xFFFE or low - index < 1:
        raise ConfigError(
            f"service address {service}: leaves no room for {index + 1} NSFs on one host; let it end in ::100"
        )
    return IPv6Address(int(service) + (index << 16) - index)


def overlap(named: Sequence[tuple[str, IPv6Network]]) -> tuple[str, str] | None:
    """The first two of the named networks that overlap."""
    order = sorted(named, key=lambda entry: (int(entry[1].network_address), -int(entry[1].broadcast_address)))
    for (first, wide), (second, network) in pairwise(order):
        if wide.overlaps(network):
            return first, second
    return None


def overhead(segments: int) -> int:
    """Bytes that encapsulation adds: outer IPv6 header and SRH."""
    return 40 + 8 + 16 * segments
