"""Ways through the host of the datapath's tests, and what the headers of packets on them must be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address

from msl.plan.steering import ChainPlan, Stop
from tests.net.datapath import CLIENT_PORT, FIRST, HEAD_END, LAST, MIDDLE, ONLY, TWICE, WAYPOINTS, ends_of, stop_here
from tests.net.packets import ROUTING, Ends, encapsulated, frame, ipv6, srh

R1, R2 = WAYPOINTS


@dataclass(frozen=True)
class Passage:
    """A place of this host in a chain, and a path that passes it."""

    name: str
    chain: ChainPlan
    which: int = 0
    """Which of the chain's places on this host."""
    before: tuple[tuple[IPv6Address, ...], ...] = ()
    """Waypoints before each stop of the chain; none by default."""
    port: int = CLIENT_PORT
    """The client's."""

    def __str__(self) -> str:
        return self.name

    @property
    def stop(self) -> Stop:
        return stop_here(self.chain, self.which)

    @property
    def is_sink(self) -> bool:
        return self.stop is self.chain.stops[-1]

    @property
    def travel(self) -> tuple[IPv6Address, ...]:
        """The path's segments."""
        before = self.before or ((),) * len(self.chain.sids)
        return tuple(
            segment for waypoints, sid in zip(before, self.chain.sids, strict=True) for segment in (*waypoints, sid)
        )

    @property
    def passed(self) -> tuple[IPv6Address, ...]:
        return self.travel[: self.travel.index(self.stop.sid)]

    @property
    def left(self) -> int:
        """Segments left when a packet arrives here."""
        return len(self.travel) - 1 - len(self.passed)

    @property
    def ends(self) -> Ends:
        """Client and service as on the wire."""
        return ends_of(self.chain, port=self.port)

    @property
    def local_ends(self) -> Ends:
        """Client and service as this host's sockets see them."""
        return ends_of(self.chain, self.stop.service, self.port)

    def arriving(self, inner: bytes, tag: int = 0) -> bytes:
        """A packet on its way to the service, as it comes here."""
        return encapsulated(HEAD_END, self.travel, self.left, inner, tag=tag)

    def answering(self, inner: bytes) -> bytes:
        """A packet on its way back from the next stop, as it comes here."""
        sender = self.chain.stops[self.chain.stops.index(self.stop) + 1]
        way_back = (*reversed(self.travel[: self.travel.index(sender.sid)]), HEAD_END)
        return encapsulated(sender.sid, way_back, len(self.passed) + 1, inner)

    def onward(self, inner: bytes = b"", tag: int = 0) -> bytes:
        """What leaves for the next stop."""
        return _leaving(HEAD_END, self.travel, self.left - 1, tag, inner)

    def back(self, inner: bytes = b"", tag: int = 0) -> bytes:
        """What leaves for the head-end."""
        return _leaving(self.stop.sid, (*reversed(self.passed), HEAD_END), len(self.passed), tag, inner)

    def changed(self) -> Passage:
        """The same place on another path: a waypoint more before the first stop."""
        before = self.before or ((),) * len(self.chain.sids)
        return dataclasses.replace(self, before=((R2, *before[0]), *before[1:]))


def _leaving(source: IPv6Address, travel: Sequence[IPv6Address], left: int, tag: int, inner: bytes) -> bytes:
    header = srh(travel, left, tag=tag)
    length = len(header + inner) if inner else 0  # paths are learnt without a length
    return frame(ipv6(source, travel[len(travel) - 1 - left], ROUTING, header + inner, length=length))


_first, _middle, _last = (partial(Passage, chain=chain) for chain in (FIRST, MIDDLE, LAST))
AT_FIRST = _first("at the first NSF")
AT_MIDDLE = _middle("at the middle NSF")
AT_LAST = _last("at the sink")
ALIASED = Passage("at the second NSF of the host", TWICE, 1)
NSFS = (
    AT_FIRST,
    _first("at the first NSF, a waypoint before it", before=((R1,), (), ())),
    _first("at the first NSF, a waypoint behind it", before=((), (R1,), ())),
    _first("at the first NSF, 13 waypoints before it", before=((R1, R2) * 6 + (R1,), (), ())),
    _first("at the first NSF, 13 waypoints behind it", before=((), (), (R1, R2) * 6 + (R1,))),
    AT_MIDDLE,
    _middle("at the middle NSF, a waypoint before it", before=((), (R1,), ())),
    _middle("at the middle NSF, a waypoint behind it", before=((), (), (R2,))),
    _middle("at the middle NSF, the same waypoint thrice", before=((R1,), (R1,), (R1,))),
    Passage("at the first NSF of the host", TWICE, 0),
    ALIASED,
    Passage("at the second NSF of the host, waypoints between", TWICE, 1, ((), (R1,), (R2, R1), (R2,))),
)
SINKS = (
    AT_LAST,
    _last("at the sink, waypoints", before=((R1,), (R2,), (R1, R2))),
    _last("at the sink, 13 waypoints", before=((), (), (R1, R2) * 6 + (R1,))),
    Passage("at the sink of a chain without NSFs", ONLY),
)
