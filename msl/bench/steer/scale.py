"""The decision by itself on generated topologies: its time, and how even the load gets against the optimum.

A topology is a ring of routers with chords, each router with a link to its neighbours and each host with one to two
routers. The optimum is that of a linear programme: a multi-commodity flow that may split, and whose fullest link is as
empty as can be. A chain's hop cannot split, so it is a bound that may be out of reach.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from msl.plan.paths import Path, Way, mirrored
from msl.steering.decide import History, Policy, Situation, decide
from msl.steering.health import Ways
from msl.steering.topology import Edge, Topology, receiving, sending

RATE_MBIT = 1000.0
HOPS = 3
_ROUTERS_A_WAY = 12
_SWEEPS = 6
"""How often every chain may decide again."""


@dataclass(frozen=True)
class Case:
    """A generated domain with chains."""

    links: int
    """Directed."""
    chains: int
    seed: int

    @property
    def name(self) -> str:
        """Its name among the results."""
        return f"links{self.links}_chains{self.chains}"


@dataclass
class Domain:
    """A topology and the chains in it."""

    topology: Topology
    hosts: list[list[str]]
    """Of each chain, source first."""
    mbit: list[float]
    """Of each chain, the same on each hop and way."""
    paths: list[Path]


@dataclass(frozen=True)
class Outcome:
    """What came out."""

    decision_ms: tuple[float, ...]
    """Time of each decision for one chain."""
    fullest_before: float
    """Utilisation of the fullest link with all chains on their shortest ways."""
    fullest_after: float
    changes: int
    optimum: float | None
    """Of the fullest link; None if the case is too large for the linear programme."""


def generate(case: Case) -> Domain:
    """A domain of about so many links; the same for the same seed."""
    chance = random.Random(case.seed)
    num_hosts = max(4, min(64, case.links // 20))
    num_routers = max(2, (case.links - 4 * num_hosts) // 6)
    routers = [f"r{i}" for i in range(num_routers)]
    rates: dict[Edge, float] = {}

    def join(a: str, b: str) -> None:
        rates[a, b] = rates[b, a] = RATE_MBIT

    for index in range(num_routers if num_routers > 2 else num_routers - 1):
        join(routers[index], routers[(index + 1) % num_routers])
    while num_routers > 3 and len(rates) < case.links - 4 * num_hosts:
        a, b = chance.sample(routers, 2)
        join(a, b)
    names = [f"n{i}" for i in range(num_hosts)]
    for name in names:
        for router in chance.sample(routers, min(2, num_routers)):
            rates[sending(name), router] = rates[router, receiving(name)] = RATE_MBIT
    hosts = [chance.sample(names, HOPS + 1) for _ in range(case.chains)]
    share = RATE_MBIT * num_hosts / (4 * HOPS * case.chains)
    mbit = [share * chance.uniform(0.5, 1.5) for _ in range(case.chains)]
    return Domain(Topology(rates), hosts, mbit, [mirrored([()] * HOPS)] * case.chains)


def run(case: Case, most_decisions: int) -> Outcome:
    """Put all chains on their shortest ways, then let them decide one after the other until nothing changes."""
    domain = generate(case)
    loads: dict[Edge, float] = {}
    graph = domain.topology.graph()
    for index, hosts in enumerate(domain.hosts):
        ways = [_shortest(graph, ends) for ends in pairwise(hosts)]
        domain.paths[index] = mirrored(ways)
        _add(domain, loads, index, 1.0)
    before = _fullest(domain, loads)
    times: list[float] = []
    histories = [History()] * case.chains
    changes = 0
    policy = Policy(confirm_s=0.0, hold_s=0.0, gain=0.05)
    for sweep in range(_SWEEPS):
        changed = 0
        for index in range(case.chains):
            if len(times) >= most_decisions:
                break
            situation = _situation(domain, loads, index, float(sweep))
            begin = time.perf_counter()
            decision = decide(situation, policy, histories[index])
            times.append(1e3 * (time.perf_counter() - begin))
            histories[index] = decision.history
            _add(domain, loads, index, -1.0)
            domain.paths[index] = decision.path
            _add(domain, loads, index, 1.0)
            changed += len(decision.changes)
        changes += changed
        if not changed:
            break
    return Outcome(tuple(times), before, _fullest(domain, loads), changes, _optimum(domain, case))


def _shortest(graph: nx.DiGraph[str], ends: tuple[str, str]) -> Way:
    nodes: list[str] = nx.shortest_path(graph, sending(ends[0]), receiving(ends[1]))
    return tuple(nodes[1:-1])


def _situation(domain: Domain, loads: dict[Edge, float], index: int, now_s: float) -> Situation:
    hosts = domain.hosts[index]
    own = (domain.mbit[index],) * HOPS
    return Situation(
        now_s,
        tuple(pairwise(hosts)),
        domain.paths[index],
        domain.topology,
        loads,
        own,
        own,
        Ways((), 3),
        None,
        HOPS * (_ROUTERS_A_WAY + 1),
    )


def _add(domain: Domain, loads: dict[Edge, float], index: int, sign: float) -> None:
    hosts, path = domain.hosts[index], domain.paths[index]
    for hop in range(HOPS):
        for ends, way in (
            ((hosts[hop], hosts[hop + 1]), path.forward[hop]),
            ((hosts[hop + 1], hosts[hop]), path.back[hop]),
        ):
            for edge in domain.topology.edges(*ends, way):
                loads[edge] = loads.get(edge, 0.0) + sign * domain.mbit[index]


def _fullest(domain: Domain, loads: dict[Edge, float]) -> float:
    return max(loads.get(edge, 0.0) / rate for edge, rate in domain.topology.rates_mbit.items())


def _optimum(domain: Domain, case: Case) -> float | None:
    """The least utilisation of the fullest link that any splitting of the hops' traffic has."""
    demands: dict[tuple[str, str], float] = {}
    for hosts, mbit in zip(domain.hosts, domain.mbit, strict=True):
        for a, b in pairwise(hosts):
            for ends in ((a, b), (b, a)):
                demands[ends] = demands.get(ends, 0.0) + mbit
    edges = list(domain.topology.rates_mbit)
    if len(edges) * len({a for a, _ in demands}) > 60_000:
        return None
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import lil_matrix

    nodes = {node: i for i, node in enumerate(dict.fromkeys(node for edge in edges for node in edge))}
    sources = sorted({a for a, _ in demands})
    count = len(edges) * len(sources) + 1  # the last variable is the utilisation of the fullest link
    keep = lil_matrix((len(nodes) * len(sources), count))
    supply = np.zeros(len(nodes) * len(sources))
    capacity = lil_matrix((len(edges), count))
    for s, source in enumerate(sources):
        for e, (a, b) in enumerate(edges):
            column = s * len(edges) + e
            keep[s * len(nodes) + nodes[a], column] = 1
            keep[s * len(nodes) + nodes[b], column] = -1
            capacity[e, column] = 1 / domain.topology.rates_mbit[a, b]
        for (a, b), mbit in demands.items():
            if a == source:
                supply[s * len(nodes) + nodes[sending(a)]] += mbit
                supply[s * len(nodes) + nodes[receiving(b)]] -= mbit
    capacity[:, count - 1] = -1
    goal = np.zeros(count)
    goal[-1] = 1
    found = linprog(goal, capacity.tocsr(), np.zeros(len(edges)), keep.tocsr(), supply, method="highs")
    return float(found.fun) if found.success else None


def summary_of(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Medians over the seeds of a case."""
    times = [ms for outcome in outcomes for ms in outcome.decision_ms]
    ratios = [outcome.fullest_after / outcome.optimum for outcome in outcomes if outcome.optimum]
    return {
        "decision_ms_p50": statistics.median(times),
        "decision_ms_p99": statistics.quantiles(times, n=100)[98] if len(times) > 1 else times[0],
        "fullest_before": statistics.median(outcome.fullest_before for outcome in outcomes),
        "fullest_after": statistics.median(outcome.fullest_after for outcome in outcomes),
        "over_optimum": statistics.median(ratios) if ratios else None,
    }
