"""Links to the SR domain: bytes, drops, queue, whether they are up, and which routers lie behind them.

Sampled ten times a second, so read as cheaply as the kernel allows: counters in one read of /proc/net/dev, state by one
ioctl a link, queues in one dump.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path

from pyroute2 import IPRoute

from msl.net.measure.netlink import dump, walk
from msl.net.sfc.proxy import interface_index
from msl.net.sfc.report import shaper_of
from msl.net.sfc.routes import interface_to, routers_behind
from msl.steering.readings import LinkReading

UNLIMITED_MBIT = 10_000.0
"""Taken as the rate of a link that tells none."""
_SMOOTH_S = 0.4
"""Time constant of the rates."""
_SIOCGIFFLAGS = 0x8913
_UP_AND_RUNNING = 0x1 | 0x40
_GETQDISC, _NEWQDISC = 38, 36
_TCA_KIND, _TCA_STATS = 1, 3
_TC_STATS = struct.Struct("=QIIIIIII")  # struct tc_stats: bytes, packets, drops, overlimits, bps, pps, qlen, backlog


@dataclass
class _Link:
    index: int
    rate_mbit: float
    routers: tuple[str, ...] = ()
    up: bool = True
    in_mbit: float = 0.0
    out_mbit: float = 0.0
    counters: tuple[int, int, int] | None = None
    """Bytes in and out, and drops."""
    queue_drops: int = 0
    backlog_bytes: int = 0


@dataclass
class Links:
    """The links of the host that this process is on.

    Args:
        interfaces: that lead to the domain.
        routers: SIDs of the domain's routers, by name.
        peers: addresses of the domain's other hosts, by name.
    """

    interfaces: Sequence[str]
    routers: Mapping[str, IPv6Address]
    peers: Mapping[str, IPv6Address]
    defaults: dict[str, str | None] = field(default_factory=dict)
    """By peer: the one router over whose interface the routes lead there; None if that cannot be told."""

    def __post_init__(self) -> None:
        self._asked = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._at_s = time.monotonic()
        with IPRoute() as netlink:
            self._links = {
                name: _Link(interface_index(netlink, name), _rate(netlink, name)) for name in self.interfaces
            }
        self.look_behind()
        self.sample()

    def close(self) -> None:
        """Close what is open."""
        self._asked.close()

    def sample(self) -> bool:
        """Read the counters; whether a link has gone up or down since the last time."""
        now = time.monotonic()
        passed, self._at_s = now - self._at_s, now
        weight = passed / (passed + _SMOOTH_S)
        counters = _counters()
        changed = False
        for name, link in self._links.items():
            up = self._is_up(name)
            changed |= up != link.up
            link.up = up
            found = counters.get(name)
            if found is None:
                continue
            if link.counters is not None and passed > 0:
                for which, rate in enumerate((link.in_mbit, link.out_mbit)):
                    fresh = max(0, found[which] - link.counters[which]) * 8e-6 / passed
                    smooth = rate + weight * (fresh - rate)
                    if which:
                        link.out_mbit = smooth
                    else:
                        link.in_mbit = smooth
            link.counters = found
        return changed

    def sample_queues(self) -> None:
        """Read the queues."""
        by_index = {link.index: link for link in self._links.values()}
        for message in dump(_GETQDISC, struct.pack("=BxxxiIII", 0, 0, 0, 0, 0)):
            index = struct.unpack_from("=i", message, 4)[0]
            if index not in by_index:
                continue
            attributes = dict(walk(message[20:]))
            if attributes.get(_TCA_KIND, b"").rstrip(b"\0") == b"clsact" or len(attributes.get(_TCA_STATS, b"")) < 36:
                continue
            _, _, drops, _, _, _, _, backlog = _TC_STATS.unpack_from(attributes[_TCA_STATS])
            by_index[index].queue_drops, by_index[index].backlog_bytes = drops, backlog

    def look_behind(self) -> None:
        """Find out which routers lie behind which link.

        Only while all links are up: with one of them the kernel removes its routes, and what lay behind it would seem
        to lie behind another.
        """
        if not all(self._is_up(name) for name in self._links):
            return
        names = {link.index: name for name, link in self._links.items()}
        with IPRoute() as netlink:
            behind = routers_behind(netlink, tuple(self._links), self.routers)
            for name, link in self._links.items():
                link.routers = behind[name]
            for peer, address in self.peers.items():
                through = names.get(interface_to(netlink, address))
                routers = behind[through] if through is not None else ()
                self.defaults[peer] = routers[0] if len(routers) == 1 else None

    def readings(self) -> tuple[LinkReading, ...]:
        """How the links are, as of the last samples."""
        return tuple(
            LinkReading(
                name,
                link.routers,
                link.up,
                link.rate_mbit,
                round(link.in_mbit, 3),
                round(link.out_mbit, 3),
                (link.counters[2] if link.counters else 0) + link.queue_drops,
                link.backlog_bytes,
            )
            for name, link in self._links.items()
        )

    def _is_up(self, name: str) -> bool:
        request = struct.pack("16sh14x", name.encode(), 0)
        try:
            answer = fcntl.ioctl(self._asked, _SIOCGIFFLAGS, request)
        except OSError:
            return False  # it is gone
        flags: int = struct.unpack_from("16sh", answer)[1]
        return flags & _UP_AND_RUNNING == _UP_AND_RUNNING


def _counters() -> dict[str, tuple[int, int, int]]:
    """Bytes in and out, and packets dropped, of all interfaces of this thread's network namespace."""
    found = {}
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]:
        name, _, rest = line.partition(":")
        numbers = rest.split()
        found[name.strip()] = int(numbers[0]), int(numbers[8]), int(numbers[3]) + int(numbers[11])
    return found


def _rate(netlink: IPRoute, name: str) -> float:
    """Of the link's shaper, in Mbit/s."""
    rate_mbit, _ = shaper_of(netlink, interface_index(netlink, name))
    return UNLIMITED_MBIT if rate_mbit is None else rate_mbit
