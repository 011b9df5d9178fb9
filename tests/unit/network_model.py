"""A model of an SR domain with planes for tests of the decision: chains' own traffic and others' fill its links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msl.plan.paths import Path, Way, mirrored
from msl.steering.decide import Decision, History, Policy, Situation, decide
from msl.steering.health import Ways
from msl.steering.readings import HostReading, ProbeReading
from msl.steering.topology import Edge, Topology, receiving, sending

RATE = 1000.0


@dataclass
class Model:
    """Hosts n0, n1, ... in a chain, routers r1, r2, ... each with a link to every host."""

    hosts: int
    planes: int
    forward_mbit: float = 100.0
    backward_mbit: float = 100.0
    others: dict[Edge, float] = field(default_factory=dict)
    """Mbit/s of others on a link."""
    dead: set[str] = field(default_factory=set)
    """Routers that are gone."""
    rtt_ms: Mapping[str, float] = field(default_factory=dict)
    """Round trip through a router; 1 ms by default."""
    path: Path = field(init=False)
    history: History = field(default_factory=History)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.path = mirrored([()] * (self.hosts - 1))

    @property
    def names(self) -> list[str]:
        return [f"n{i}" for i in range(self.hosts)]

    @property
    def routers(self) -> list[str]:
        return [f"r{i + 1}" for i in range(self.planes)]

    @property
    def hops(self) -> tuple[tuple[str, str], ...]:
        return tuple(zip(self.names, self.names[1:], strict=False))

    @property
    def topology(self) -> Topology:
        rates = {}
        for host in self.names:
            for router in self.routers:
                rates[sending(host), router] = rates[router, receiving(host)] = RATE
        routes = {(a, b): ("r1",) for a in self.names for b in self.names if a != b}
        return Topology(rates, routes)

    def loads(self) -> dict[Edge, float]:
        """What links carry: no more than fits."""
        offered = dict(self.others)
        for ends, way, own in self.traffic():
            for edge in self.topology.edges(*ends, way):
                offered[edge] = offered.get(edge, 0.0) + own
        return {edge: min(load, RATE) for edge, load in offered.items()}

    def traffic(self) -> list[tuple[tuple[str, str], Way, float]]:
        found = []
        for hop, (a, b) in enumerate(self.hops):
            found.append(((a, b), self.path.forward[hop], self.forward_mbit))
            found.append(((b, a), self.path.back[hop], self.backward_mbit))
        return found

    def situation(self) -> Situation:
        count = self.hosts - 1
        return Situation(
            self.now_s,
            self.hops,
            self.path,
            self.topology,
            self.loads(),
            (self.forward_mbit,) * count,
            (self.backward_mbit,) * count,
            Ways(self.readings(), dead_after=4),
            {ends: ((), *((router,) for router in self.routers)) for a, b in self.hops for ends in ((a, b), (b, a))},
        )

    def readings(self) -> list[HostReading]:
        """Probes from each hop's near end over all ways, in both sizes."""
        found = []
        for near, far in self.hops:
            probes = []
            for way in ((), *((router,) for router in self.routers)):
                gone = bool({*(way or ("r1",))} & self.dead)
                rtt = self.rtt_ms.get((way or ("r1",))[0], 1.0)
                for full in (False, True):
                    missed, row = (9, 0) if gone else (0, 9)
                    probes.append(ProbeReading(far, way, full, 99, 90, missed, row, None if gone else rtt))
            found.append(HostReading(near, self.now_s, (), tuple(probes), (), {}, {}, {}))
        return found

    def step(self, policy: Policy, seconds: float = 0.2) -> Decision:
        """Decide, take the path, and let time pass."""
        decision = decide(self.situation(), policy, self.history)
        self.path, self.history = decision.path, decision.history
        self.now_s += seconds
        return decision

    def run(self, policy: Policy, seconds: float, step_s: float = 0.2) -> list[Decision]:
        end = self.now_s + seconds
        decisions = []
        while self.now_s < end:
            decisions.append(self.step(policy, step_s))
        return decisions


def changes(decisions: Sequence[Decision]) -> list[tuple[int, str, Way]]:
    """Hop, direction and new way of all changes."""
    return [(c.place.hop, c.place.direction, c.after) for decision in decisions for c in decision.changes]
