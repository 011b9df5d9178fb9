"""A plane fails under load: once the path has changed, the connections go on at TCP's next attempt."""

from __future__ import annotations

import time
from functools import partial

import pytest

from msl.config import TestbedConfig
from msl.net.faults import fault
from msl.net.sfc import sysctl
from msl.net.sfc.path import teach
from tests.net.chain import Chains, lay, path, running

pytestmark = [pytest.mark.root, pytest.mark.slow]

DOMAIN, PLAN = lay()
LINKS = TestbedConfig(rate_mbit=200)
NOTICED_S = 0.15
"""From the fault until the path changes, as a controller would do it."""


def longest_gap(chains: Chains) -> float:
    """The longest time without progress of connections whose plane loses the first NSF's link."""
    with chains.open(PLAN) as chain:
        chain.steer(path(DOMAIN, PLAN, "r1"))
        load = chain.load(0, 4 * 10**7, parallel=2)
        time.sleep(1.5)
        with fault(chains.bed, "r1", "link_down", 1):
            time.sleep(NOTICED_S)
            segments = path(DOMAIN, PLAN, "r2")
            chain.steer(segments)
            for stop in PLAN.stops:
                agent = chains.agents[stop.host]
                chains.inside(stop.host, partial(teach, agent, PLAN.number, segments, 2))
            time.sleep(4.0)
            load.end_input()
            reports = load.finish(60)
        return max(max(report["forward_gap_s"], report["backward_gap_s"]) for report in reports)


def test_a_packet_that_waits_for_a_dead_neighbour_does_not_hold_up_the_new_path() -> None:
    with running(DOMAIN, LINKS) as chains:
        assert longest_gap(chains) < 1.0


def test_it_would_with_the_kernels_own_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl, "PATIENCE_MS", "1000")
    with running(DOMAIN, LINKS) as chains:
        assert longest_gap(chains) > 1.0
