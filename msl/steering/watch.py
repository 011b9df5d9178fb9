"""From readings to decisions: the newest reading of each host, which ways are looked at, and the history between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any

import networkx as nx

from msl.plan.paths import Path, Way
from msl.steering.decide import Decision, History, Policy, Situation, decide
from msl.steering.health import Ways
from msl.steering.readings import HostReading
from msl.steering.topology import Edge, loads_of, receiving, sending, topology_of

_MOST_WAYS = 8
"""Ways of a hop that are probed, besides those in use."""


@dataclass(frozen=True)
class Beginning:
    """What a controller begins with."""

    hops: tuple[tuple[str, str], ...]
    path: Path
    routers: tuple[str, ...]
    """Of the SR domain."""
    between: tuple[tuple[str, str, float], ...]
    """Links between routers, each way by itself, with their rates in Mbit/s."""
    max_segments: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`steering` of the configuration."""


class Watch:
    """Keeps the newest readings and makes decisions of them.

    Args:
        beginning: chain, path and settings.
    """

    def __init__(self, beginning: Beginning) -> None:
        self.path = beginning.path
        """As it stands; whoever changes it sets this."""
        self.history = History()
        self.readings: dict[str, HostReading] = {}
        self._beginning = beginning
        known = {f.name for f in fields(Policy)}
        settings = {key: value for key, value in beginning.settings.items() if key in known}
        self.policy = Policy(kind=beginning.settings.get("policy", "least-loaded"), **settings)
        self.dead_after = int(beginning.settings.get("dead_after", 4))

    @property
    def complete(self) -> bool:
        """Whether all hosts of the chain have told of themselves."""
        return all(host in self.readings for hop in self._beginning.hops for host in hop)

    def take(self, reading: HostReading) -> None:
        """The newest reading of a host."""
        self.readings[reading.host] = reading

    def candidates(self) -> dict[tuple[str, str], tuple[Way, ...]]:
        """The ways of each hop that are worth probing, in both directions."""
        found: dict[tuple[str, str], tuple[Way, ...]] = {}
        topology = topology_of(self.readings.values(), self._between())
        graph = topology.graph()
        for index, (near, far) in enumerate(self._beginning.hops):
            for ends, way in (((near, far), self.path.forward[index]), ((far, near), self.path.back[index])):
                nodes = sending(ends[0]), receiving(ends[1])
                ways: list[Way] = [(), way]
                if all(node in graph for node in nodes) and nx.has_path(graph, *nodes):
                    shortest = islice(nx.shortest_simple_paths(graph, *nodes), _MOST_WAYS)
                    ways += [tuple(path[1:-1]) for path in shortest]
                found[ends] = tuple(dict.fromkeys((*found.get(ends, ()), *ways)))
        return found

    def situation(self, now_s: float) -> Situation:
        """What a decision at this moment depends on."""
        readings = self.readings.values()
        hops = self._beginning.hops
        forward = [self._mbit(far, "forward", hop) for hop, (_, far) in enumerate(hops)]
        backward = [self._mbit(near, "backward", hop) for hop, (near, _) in enumerate(hops)]
        return Situation(
            now_s,
            hops,
            self.path,
            topology_of(readings, self._between()),
            loads_of(readings),
            tuple(forward),
            tuple(backward),
            Ways(readings, self.dead_after),
            self._probed(),
            self._beginning.max_segments,
        )

    def decide(self, now_s: float) -> Decision:
        """The decision at this moment; the history is kept for the next one."""
        decision = decide(self.situation(now_s), self.policy, self.history)
        self.history = decision.history
        return decision

    def _probed(self) -> dict[tuple[str, str], tuple[Way, ...]]:
        """The ways that are probed between two hosts, from either end."""
        found: dict[tuple[str, str], dict[Way, None]] = {}
        for reading in self.readings.values():
            for probe in reading.probes:
                found.setdefault((reading.host, probe.peer), {})[probe.way] = None
                found.setdefault((probe.peer, reading.host), {})[tuple(reversed(probe.way))] = None
        return {ends: tuple(ways) for ends, ways in found.items()}

    def _mbit(self, host: str, direction: str, hop: int) -> float:
        reading = self.readings.get(host)
        if reading is None:
            return 0.0
        rates = reading.forward_mbit if direction == "forward" else reading.backward_mbit
        return rates.get(str(hop), 0.0)

    def _between(self) -> dict[Edge, float]:
        return {(a, b): rate for a, b, rate in self._beginning.between}
