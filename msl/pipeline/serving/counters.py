"""What a hop of a service counts: requests, refusals, and histograms of times."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_SMALLEST_US = 10.0
_STEP = 1.05
_BUCKETS = 400
"""10 us to about 50 min, each bucket 5% wider than the one before."""


class Histogram:
    """Durations in buckets that grow by 5%, so that a percentile is right to 5% whatever the scale."""

    def __init__(self, counts: Sequence[int] | None = None) -> None:
        self.counts = list(counts) if counts is not None else [0] * _BUCKETS

    def add(self, duration_ns: int) -> None:
        """Count a duration."""
        us = duration_ns / 1e3
        index = int(math.log(us / _SMALLEST_US) / math.log(_STEP)) + 1 if us > _SMALLEST_US else 0
        self.counts[min(index, _BUCKETS - 1)] += 1

    def since(self, before: Histogram) -> Histogram:
        """What was added after `before` was copied."""
        return Histogram([now - then for now, then in zip(self.counts, before.counts, strict=True)])

    def copy(self) -> Histogram:
        """The histogram as it is now."""
        return Histogram(self.counts)

    @property
    def total(self) -> int:
        """How many durations were counted."""
        return sum(self.counts)

    def percentile_ms(self, percent: float) -> float | None:
        """The upper edge of the bucket that holds the percentile; None if nothing was counted."""
        rank = self.total * percent / 100
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= rank:
                return _SMALLEST_US * _STEP**index / 1e3
        return None


@dataclass
class ServiceCounters:
    """What one hop of a service has done so far. One thread at a time writes; others read copies."""

    accepted: int = 0
    """Connections."""
    requests: int = 0
    answered: int = 0
    samples: int = 0
    batches: int = 0
    """Computations; each of one request, or of several that were merged."""
    refused: Counter[str] = field(default_factory=Counter)
    """Sessions that were ended with an error, by its kind."""
    latency: Histogram = field(default_factory=Histogram)
    """From the header of a request to its answer, with all hops behind this one."""
    queue: Histogram = field(default_factory=Histogram)
    """From a request's arrival to the begin of its computation."""
    compute: Histogram = field(default_factory=Histogram)
    """Of a computation."""


@dataclass(frozen=True)
class ServiceReport:
    """A hop of a service, looked at."""

    name: str
    host: str
    hop: int
    time_s: float
    """When; monotonic."""
    open: int
    """Sessions."""
    waiting: int
    """Requests that wait to be computed."""
    lent_bytes: int
    """Receive buffers in use."""
    allocated_bytes: int
    """Receive buffers in all."""
    rss_bytes: int
    """Resident memory of the process."""
    counters: ServiceCounters
    fault: str | None = None
    """Why the hop has stopped serving."""


def compare(before: Sequence[ServiceReport], now: Sequence[ServiceReport]) -> dict[str, Any]:
    """What a service did between two looks at its hops: plain values, times in ms, `None` where nothing was done."""
    figures: dict[str, Any] = {"time": time.time(), "hops": {}}
    for old, new in zip(before, now, strict=True):
        seconds = max(1e-9, new.time_s - old.time_s)
        was, done = old.counters, new.counters
        latency = done.latency.since(was.latency)
        answered, batches = done.answered - was.answered, done.batches - was.batches
        entry = {
            "host": new.host,
            "requests_per_s": answered / seconds,
            "samples_per_s": (done.samples - was.samples) / seconds,
            "p50_ms": latency.percentile_ms(50),
            "p95_ms": latency.percentile_ms(95),
            "p99_ms": latency.percentile_ms(99),
            "queue_p50_ms": done.queue.since(was.queue).percentile_ms(50),
            "compute_p50_ms": done.compute.since(was.compute).percentile_ms(50),
            "requests_per_batch": answered / batches if batches else None,
            "connections": new.open,
            "waiting": new.waiting,
            "buffers_bytes": new.allocated_bytes,
            "rss_bytes": new.rss_bytes,
            "answered": done.answered,
            "refused": dict(done.refused),
        }
        figures["hops"][new.name] = entry
    return figures
