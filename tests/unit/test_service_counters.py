"""Histograms of a service, and what the driver makes of two looks at it."""

from __future__ import annotations

import copy
import random

import pytest

from msl.pipeline.serving.counters import Histogram, ServiceCounters, ServiceReport, compare


@pytest.mark.parametrize("percent", [50, 95, 99])
def test_percentiles_are_right_to_five_percent_at_every_scale(percent: int) -> None:
    durations = sorted(int(10 ** random.Random(i).uniform(4.5, 10)) for i in range(5000))
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    exact = durations[len(durations) * percent // 100] / 1e6
    assert histogram.percentile_ms(percent) == pytest.approx(exact, rel=0.06)


def test_the_difference_of_two_looks_is_what_came_between() -> None:
    histogram = Histogram()
    for _ in range(100):
        histogram.add(1_000_000)
    before = histogram.copy()
    for _ in range(10):
        histogram.add(50_000_000)
    between = histogram.since(before)
    assert between.total == 10
    assert between.percentile_ms(50) == pytest.approx(50, rel=0.06)
    assert Histogram().percentile_ms(50) is None


def test_two_looks_give_rates_and_latencies() -> None:
    counters = ServiceCounters()
    first = ServiceReport("nsf1", "n1", 1, 10.0, 2, 0, 0, 0, 0, copy.deepcopy(counters))
    counters.answered, counters.samples, counters.batches = 20, 60, 10
    counters.latency.add(2_000_000)
    counters.refused["ProtocolError"] += 3
    second = ServiceReport("nsf1", "n1", 1, 12.0, 5, 1, 0, 0, 0, counters)
    entry = compare([first], [second])["hops"]["nsf1"]
    assert (entry["requests_per_s"], entry["samples_per_s"], entry["requests_per_batch"]) == (10.0, 30.0, 2.0)
    assert entry["p50_ms"] == pytest.approx(2.0, rel=0.06)
    assert entry["queue_p50_ms"] is None
    assert (entry["connections"], entry["waiting"], entry["refused"]) == (5, 1, {"ProtocolError": 3})
