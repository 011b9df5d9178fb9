"""Which ways carry packets, as far as probes tell: alive, dead, or not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from msl.plan.paths import Way
from msl.steering.readings import FULL_EVERY, HostReading, ProbeReading

Trip = tuple[str, str, Way]
"""From a host to another over a way, and back over the same routers."""

_PROVEN = 3
"""So many answers in a row, in both sizes, and a way is trusted."""


@dataclass(frozen=True)
class Health:
    """What probes tell of a way."""

    missed: int
    """Rounds of probes in a row, by the size that fares worse."""
    proven: bool
    """Packets of full size have been answered lately, in a row."""
    rtt_ms: float | None
    unanswered_full: bool = False
    """It is the large ones that are lost."""


class Ways:
    """The health of all ways that are probed.

    Args:
        readings: of all hosts.
        dead_after: so many missed rounds in a row make a way dead.
    """

    def __init__(self, readings: Iterable[HostReading], dead_after: int) -> None:
        self._dead_after = dead_after
        self._healths: dict[Trip, Health] = {}
        down: set[tuple[str, str]] = set()
        for reading in readings:
            down |= {(reading.host, router) for link in reading.links if not link.up for router in link.routers}
            sizes: dict[tuple[str, Way], list[ProbeReading]] = {}
            for probe in reading.probes:
                sizes.setdefault((probe.peer, probe.way), []).append(probe)
            for (peer, way), probes in sizes.items():
                self._healths[reading.host, peer, way] = _health(probes)
        self._down = down
        self._suspects = self._suspected()

    def health(self, source: str, target: str, way: Way) -> Health | None:
        """What is known of a way, probed from either end; None if nothing."""
        there = self._healths.get((source, target, way))
        return there if there is not None else self._healths.get((target, source, tuple(reversed(way))))

    def why_dead(self, source: str, target: str, way: Way, routes: Mapping[tuple[str, str], Way]) -> str | None:
        """Why a way does not carry packets; None if it does, or nothing is known."""
        routers = way or routes.get((source, target), ())
        if routers and (source, routers[0]) in self._down:
            return f"the link {source}->{routers[0]} is down"
        if routers and (target, routers[-1]) in self._down:
            return f"the link {routers[-1]}->{target} is down"
        health = self.health(source, target, way)
        if health is None:
            return None
        # Where a router is dead for others, one missed answer is enough: it is gone for everybody.
        enough = 1 if self._suspects & set(routers) else self._dead_after
        if health.missed < enough:
            return None
        what = "large packets" if health.unanswered_full else "probes"
        named = f"through {', '.join(way)}" if way else "as the routes lead"
        return f"{what} from {source} to {target} {named} have no answer"

    def is_proven(self, source: str, target: str, way: Way) -> bool:
        """Whether a way has carried packets of full size lately."""
        health = self.health(source, target, way)
        return health is not None and health.proven and not self._suspects & set(way)

    def _suspected(self) -> set[str]:
        """Routers that are dead for somebody, and answer nobody."""
        dead: dict[str, int] = {}
        fine: set[str] = set()
        for (_, _, way), health in self._healths.items():
            for router in way:
                if health.missed >= self._dead_after:
                    dead[router] = dead.get(router, 0) + 1
                elif health.missed == 0:
                    fine.add(router)
        return set(dead) - fine


def _health(probes: Iterable[ProbeReading]) -> Health:
    small = next((probe for probe in probes if not probe.full_size), None)
    full = next((probe for probe in probes if probe.full_size), None)
    both = [probe for probe in (small, full) if probe is not None]
    return Health(
        missed=max(probe.missed * (FULL_EVERY if probe.full_size else 1) for probe in both),
        proven=full is not None and all(probe.in_a_row >= _PROVEN for probe in both),
        rtt_ms=small.rtt_ms if small is not None else full.rtt_ms if full is not None else None,
        unanswered_full=full is not None and small is not None and full.missed > small.missed,
    )
