"""The decision: from the situation, a policy and the history to a path. Pure; the same inputs give the same output.

For each hop and direction the cheapest way is looked for in the graph of the SR domain, by what its links carry besides
this traffic and with this traffic on it, so that a chain does not flee from itself. A way that carries packets is left
only for one that costs less by a share (hysteresis), has done so for a while, and not soon after another change
(hold-down). A dead way is left at once. If every other way is dead too, or not proven, nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

import networkx as nx

from msl.plan.paths import Path, Way
from msl.steering.cost import link_cost, way_cost
from msl.steering.health import Ways
from msl.steering.topology import Edge, Topology, link_name, receiving, sending

Direction = Literal["forward", "backward"]

_LOOKED_AT = 16
"""So many ways of a hop are looked at, from the cheapest on, for one that may be taken."""
_LEAST_MS = 0.2
"""A way that is quicker by less is not worth a change."""


class Place(NamedTuple):
    """A hop in one direction."""

    hop: int
    direction: Direction


@dataclass(frozen=True)
class Policy:
    """How a path is chosen; the settings are those of `steering` in the configuration."""

    kind: Literal["least-loaded", "latency"] = "least-loaded"
    gain: float = 0.2
    """A way must cost this share less than the present one."""
    confirm_s: float = 0.3
    """For so long, before the change."""
    hold_s: float = 2.0
    """A hop stays as it is for so long after a change."""


@dataclass(frozen=True)
class Situation:
    """All that a decision depends on besides policy and history."""

    now_s: float
    hops: tuple[tuple[str, str], ...]
    """The two hosts of each hop."""
    path: Path
    topology: Topology
    loads: Mapping[Edge, float]
    """Mbit/s of each link, this chain's own included."""
    forward_mbit: tuple[float, ...]
    """Of each hop, the chain's own traffic forward."""
    backward_mbit: tuple[float, ...]
    ways: Ways
    candidates: Mapping[tuple[str, str], tuple[Way, ...]] | None = None
    """The ways that are probed, by two hosts; others are not taken. None: nothing is probed, and all of the graph may
    be taken."""
    max_segments: int = 16


@dataclass(frozen=True)
class History:
    """What earlier decisions leave for later ones."""

    changed_s: Mapping[Place, float] = field(default_factory=dict)
    better_since_s: Mapping[Place, tuple[Way, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """Another way on one hop in one direction."""

    place: Place
    before: Way
    after: Way
    reason: str
    urgent: bool
    """The way before is dead."""


@dataclass(frozen=True)
class Decision:
    """What to do."""

    path: Path
    changes: tuple[Change, ...]
    history: History
    stuck: tuple[str, ...] = ()
    """What is wrong with the path and cannot be helped."""


def decide(situation: Situation, policy: Policy, history: History) -> Decision:
    """The path that the chain should take now."""
    return _Decider(situation, policy, history).decide()


class _Decider:
    def __init__(self, situation: Situation, policy: Policy, history: History) -> None:
        self._at = situation
        self._policy = policy
        self._history = history
        self._path = situation.path
        self._graph: nx.DiGraph[str] | None = None
        self._rates = situation.topology.rates_mbit
        self._loads = dict(situation.loads)
        self._changes: list[Change] = []
        self._stuck: list[str] = []
        self._better: dict[Place, tuple[Way, float]] = {}

    def decide(self) -> Decision:
        for hop in range(len(self._at.hops)):
            self._look_at(Place(hop, "forward"))
            self._look_at(Place(hop, "backward"))
        changed = dict(self._history.changed_s) | dict.fromkeys((c.place for c in self._changes), self._at.now_s)
        return Decision(self._path, tuple(self._changes), History(changed, self._better), tuple(self._stuck))

    def _look_at(self, place: Place) -> None:
        source, target = self._ends(place)
        way = self._way(place)
        own = self._own(place)
        edges = self._at.topology.edges(source, target, way)
        for edge in edges:  # what others carry
            self._loads[edge] = max(0.0, self._loads.get(edge, 0.0) - own)
        dead = self._at.ways.why_dead(source, target, way, self._at.topology.routes)
        found = self._best(place, own)
        taken = way
        if dead is not None:
            if found is None:
                self._stuck.append(f"{dead}, and no other way is proven")
            else:
                taken = self._take(place, found[0], dead, True)
        elif found is not None and found[0] != way:
            taken = self._weigh(place, way, found, own)
        for edge in self._at.topology.edges(source, target, taken):
            self._loads[edge] = self._loads.get(edge, 0.0) + own

    def _weigh(self, place: Place, way: Way, found: tuple[Way, float], own: float) -> Way:
        """Leave a way that works for a better one, if it has been better for long enough."""
        other, cost = found
        present = self._cost(place, way, own)
        if not cost < (1.0 - self._policy.gain) * present:
            return way
        if self._policy.kind == "latency" and present - cost < _LEAST_MS:
            return way
        now = self._at.now_s
        known, since = self._history.better_since_s.get(place, (other, now))
        since = since if known == other else now
        self._better[place] = other, since
        held = now - self._history.changed_s.get(place, float("-inf")) < self._policy.hold_s
        if held or now - since < self._policy.confirm_s:
            return way
        del self._better[place]
        return self._take(place, other, self._why(place, way, other, own, present, cost), False)

    def _take(self, place: Place, way: Way, reason: str, urgent: bool) -> Way:
        before = self._way(place)
        if place.direction == "forward":
            self._path = self._path.with_forward(place.hop, way, keep_back=True)
        else:
            self._path = self._path.with_backward(place.hop, way)
        self._changes.append(Change(place, before, way, reason, urgent))
        return way

    def _best(self, place: Place, own: float) -> tuple[Way, float] | None:
        """The cheapest way that may be taken, and its cost."""
        source, target = self._ends(place)
        room = self._room(place)
        ways = self._at.ways
        present = self._way(place)
        for way, cost in islice(self._by_cost(place, own), _LOOKED_AT):
            if len(way) > room or ways.why_dead(source, target, way, self._at.topology.routes) is not None:
                continue
            if way == present or self._at.candidates is None or ways.is_proven(source, target, way):
                return way, cost
        return None

    def _by_cost(self, place: Place, own: float) -> Iterator[tuple[Way, float]]:
        source, target = self._ends(place)
        if self._at.candidates is not None:
            listed = self._at.candidates.get((source, target), ())
            costs = {way: self._cost(place, way, own) for way in dict.fromkeys((self._way(place), *listed))}
            yield from sorted(costs.items(), key=lambda entry: (entry[1], len(entry[0])))
            return
        if self._graph is None:
            self._graph = self._at.topology.graph()
        graph = self._graph
        ends = sending(source), receiving(target)
        if not all(end in graph for end in ends):
            return
        try:
            for nodes in nx.shortest_simple_paths(graph, *ends, weight=self._weight(own)):
                way = tuple(nodes[1:-1])
                yield way, self._cost(place, way, own)
        except nx.NetworkXNoPath:
            return

    def _weight(self, own: float) -> Callable[[str, str, dict[str, float]], float]:
        return lambda a, b, link: link_cost(self._loads.get((a, b), 0.0) + own, link["rate"])

    def _cost(self, place: Place, way: Way, own: float) -> float:
        source, target = self._ends(place)
        if self._policy.kind == "latency":
            health = self._at.ways.health(source, target, way)
            return float("inf") if health is None or health.rtt_ms is None else health.rtt_ms
        return way_cost(self._at.topology.edges(source, target, way), self._loads, self._rates, own)

    def _why(self, place: Place, way: Way, other: Way, own: float, present: float, cost: float) -> str:
        if self._policy.kind == "latency":
            return f"{present:.2f} ms {_through(way)}, {cost:.2f} ms {_through(other)}"

        def worst(of: Way) -> tuple[float, str]:
            edges = self._at.topology.edges(*self._ends(place), of)
            return max(((self._loads.get(e, 0.0) + own) / self._rates[e], link_name(e)) for e in edges)

        (before, link), (after, _) = worst(way), worst(other)
        return f"{link} is {before:.0%} full, {_through(other)} it would be {after:.0%}"

    def _ends(self, place: Place) -> tuple[str, str]:
        near, far = self._at.hops[place.hop]
        return (near, far) if place.direction == "forward" else (far, near)

    def _way(self, place: Place) -> Way:
        return self._path.forward[place.hop] if place.direction == "forward" else self._path.back[place.hop]

    def _own(self, place: Place) -> float:
        return (self._at.forward_mbit if place.direction == "forward" else self._at.backward_mbit)[place.hop]

    def _room(self, place: Place) -> int:
        """Routers that the way may have, so that the segment list does not get too long."""
        if place.direction == "backward":
            return self._at.max_segments - place.hop - 1
        others = sum(len(way) + 1 for hop, way in enumerate(self._path.forward) if hop != place.hop)
        return self._at.max_segments - others - 1


def _through(way: Way) -> str:
    return f"through {', '.join(way)}" if way else "as the routes lead"
