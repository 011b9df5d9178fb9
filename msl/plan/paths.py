"""Paths of a chain in words: which routers are passed on each hop and way, and the segment lists that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from msl.errors import ConfigError
from msl.plan.addressing import SegmentList, Sid
from msl.plan.steering import ChainPlan, DomainPlan

Way = tuple[str, ...]
"""Routers that are passed from one stop to the next, in travel order; without one, the hosts' routes decide."""


@dataclass(frozen=True)
class Path:
    """The path of a chain."""

    forward: tuple[Way, ...]
    """Of each hop, from the source on."""
    backward: tuple[Way | None, ...]
    """Of each hop the way back, in its own travel order; None: that of `forward`, mirrored."""

    @property
    def back(self) -> tuple[Way, ...]:
        """The ways back, with what mirrors written out."""
        return tuple(
            way if way is not None else tuple(reversed(there))
            for way, there in zip(self.backward, self.forward, strict=True)
        )

    def with_forward(self, hop: int, way: Way, keep_back: bool = False) -> Path:
        """This path with another way forward on a hop; the way back goes along, or stays where it is."""
        back = list(self.backward)
        if keep_back:
            back[hop] = self.back[hop]
        there = list(self.forward)
        there[hop] = way
        return Path(tuple(there), _normal(there, back))

    def with_backward(self, hop: int, way: Way | None) -> Path:
        """This path with another way back on a hop; None mirrors the way forward again."""
        back = list(self.backward)
        back[hop] = way
        return Path(self.forward, _normal(self.forward, back))


def _normal(forward: Sequence[Way], backward: Sequence[Way | None]) -> tuple[Way | None, ...]:
    """The ways back, with None for those that mirror."""
    return tuple(
        None if back is None or back == tuple(reversed(there)) else back
        for there, back in zip(forward, backward, strict=True)
    )


def mirrored(forward: Sequence[Way]) -> Path:
    """A path whose ways back mirror those forward."""
    return Path(tuple(forward), (None,) * len(forward))


def hops_of(chain: ChainPlan) -> list[tuple[str, str]]:
    """The two hosts of each hop, from the source on."""
    return list(pairwise([chain.source, *(stop.host for stop in chain.stops)]))


def hop_names(chain: ChainPlan) -> list[str]:
    """Each hop as `msl steer --hop` names it: source:nsf1, nsf1:nsf2, ..."""
    return [f"{a}:{b}" for a, b in pairwise(["source", *(stop.name for stop in chain.stops)])]


def segments_of(chain: ChainPlan, domain: DomainPlan, forward: Sequence[Way]) -> SegmentList:
    """The head-end's segment list.

    Raises:
        ConfigError: there is no such router, or the list is longer than the domain allows.
    """
    segments: list[Sid] = []
    for way, stop in zip(forward, chain.stops, strict=True):
        segments += [domain.router(name).sid for name in way]
        segments.append(stop.sid)
    if len(segments) > domain.max_segments:
        raise ConfigError(
            f"a path of {len(segments)} segments is longer than sr.max_segments ({domain.max_segments}); pass fewer"
            " routers, or raise it before the start"
        )
    return tuple(segments)


def ways_of(chain: ChainPlan, domain: DomainPlan, segments: SegmentList) -> tuple[Way, ...]:
    """The ways that a segment list takes.

    Raises:
        ConfigError: it does not pass the chain's stops in their order, or passes a SID that nobody has.
    """
    routers = {router.sid: router.name for router in domain.routers}
    wanted = ", ".join(map(str, chain.sids))
    ways: list[Way] = []
    passed: list[str] = []
    for sid in segments:
        if len(ways) < len(chain.stops) and sid == chain.stops[len(ways)].sid:
            ways.append(tuple(passed))
            passed = []
        elif sid in routers:
            passed.append(routers[sid])
        else:
            raise ConfigError(f"segment {sid}: neither a router's SID nor the chain's next one; it passes {wanted}")
    if len(ways) < len(chain.stops) or passed:
        raise ConfigError(f"a path must pass the SIDs {wanted} in this order, and end there")
    return tuple(ways)


def return_segments(chain: ChainPlan, domain: DomainPlan, hop: int, way: Way) -> SegmentList:
    """Where the answers of a hop's far end go: the routers, the stop before, and on to the head-end.

    Args:
        chain: the chain.
        domain: its SR domain.
        hop: from 0, the one between the source and the first stop.
        way: the routers that are to be passed, in travel order.
    """
    before = [stop.sid for stop in reversed(chain.stops[:hop])]
    return (*(domain.router(name).sid for name in way), *before, domain.host(chain.source).decap)


def show(path: Path, chain: ChainPlan) -> str:
    """A path in one line: `n0 -> r1 -> nsf1@n1`, with the ways back that are others than forward."""
    text = f"source@{chain.source}"
    for way, stop in zip(path.forward, chain.stops, strict=True):
        text += "".join(f" -> {name}" for name in way) + f" -> {stop.name}@{stop.host}"
    apart = [
        f"{name} back {'through ' + ', '.join(way) if way else 'as the routes lead'}"
        for name, way in zip(hop_names(chain), path.backward, strict=True)
        if way is not None
    ]
    return text + (f" ({'; '.join(apart)})" if apart else "")


def planned(chain: ChainPlan, domain: DomainPlan) -> Path:
    """The path that a chain begins with."""
    return mirrored(ways_of(chain, domain, chain.segments))
