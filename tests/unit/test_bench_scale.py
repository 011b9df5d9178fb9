"""The generated topologies of the steering benchmark, their decisions, and the optimum they are held against."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import pytest

from msl.bench.steer.scale import Case, generate, run
from msl.bench.steer.stream import Pause, longest
from msl.steering.topology import receiving, sending


@pytest.mark.parametrize("links", [10, 100, 1000])
def test_a_topology_has_about_so_many_links_and_joins_all_hosts(links: int) -> None:
    domain = generate(Case(links, 10, 1))
    assert 0.5 * links <= len(domain.topology.rates_mbit) <= max(2.5 * links, 40)
    graph = domain.topology.graph()
    for hosts in domain.hosts:
        for a, b in pairwise(hosts):
            assert nx.has_path(graph, sending(a), receiving(b))


def test_the_same_seed_gives_the_same_domain() -> None:
    assert generate(Case(100, 5, 7)).hosts == generate(Case(100, 5, 7)).hosts
    assert generate(Case(100, 5, 7)).hosts != generate(Case(100, 5, 8)).hosts


def test_deciding_evens_the_load_and_stays_above_the_optimum() -> None:
    outcome = run(Case(100, 20, 2), 500)
    assert outcome.optimum is not None
    assert outcome.fullest_after <= outcome.fullest_before
    assert outcome.optimum <= outcome.fullest_after + 1e-9
    assert outcome.fullest_after < 3 * outcome.optimum
    assert outcome.decision_ms


def test_a_case_that_is_too_large_has_no_optimum() -> None:
    assert run(Case(2000, 30, 0), 5).optimum is None


def test_the_longest_pause_of_a_window_counts_those_that_reach_into_it() -> None:
    pauses = [Pause(0.0, 1.0), Pause(2.0, 2.1), Pause(3.0, 3.5)]
    assert longest(pauses, 0.9, 1.1) == 1.0
    assert longest(pauses, 1.5, 2.5) == pytest.approx(0.1)
    assert longest(pauses, 1.2, 1.9) == 0.0
