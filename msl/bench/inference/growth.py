"""How latency and throughput of a service grow with the number of NSFs and of clients."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msl.actors.cluster import Session
from msl.actors.job import prepare
from msl.bench.calls import actors
from msl.bench.inference.clients import Crowd, Question
from msl.bench.inference.sides import Questions, services_of
from msl.bench.result import Sample, take_turns
from msl.bench.rivals.unsplit import Unsplit
from msl.config import Config
from msl.metrics.summary import percentile
from msl.pipeline.build import as_inputs
from msl.pipeline.checkpoint import initial_state

LATENCY, REQUESTS, SAMPLES = "growth_latency_ms", "growth_requests_per_s", "growth_samples_per_s"
CROWD = 8
"""Clients with which the number of NSFs grows, besides a single one."""
LARGE = 16
"""Samples of a large request."""
_SECONDS = 1.5
_LEAST_S = 0.2
"""Of a turn in the round that is not counted."""


class Case(NamedTuple):
    """So many clients of a chain."""

    nsfs: int
    clients: int
    batch: int

    @property
    def name(self) -> str:
        """Its name among the results."""
        return f"nsf{self.nsfs}_clients{self.clients}_batch{self.batch}"

    def __str__(self) -> str:
        return f"{_count(self.nsfs, 'NSF')}, {_count(self.clients, 'client')}, batch {self.batch}"


def cases_of(nsfs: Sequence[int], own: int, clients: Sequence[int]) -> list[Case]:
    """All cases: each number of NSFs with one client and with some, and one of them with each number of clients.

    Args:
        nsfs: numbers of NSFs.
        own: the one at which the number of clients grows.
        clients: numbers of clients.
    """
    few = {1, min(CROWD, max(clients))}
    cases = {Case(number, some, 1) for number in nsfs for some in few}
    cases |= {Case(own, number, batch) for number in clients for batch in (1, LARGE)}
    return sorted(cases)


class Growth:
    """All cases over each fabric, in turns."""

    def __init__(self) -> None:
        self.samples: dict[str, list[Sample]] = {LATENCY: [], REQUESTS: [], SAMPLES: []}

    def measure(
        self,
        config: Config,
        cases: Sequence[Case],
        rounds: int,
        cluster: Session,
        say: Callable[[str], None],
    ) -> None:
        """Measure the cases of one chain.

        Raises:
            StageError: an output is not the unsplit model's.
            MslError: what else went wrong.
        """
        job = prepare(config)
        with services_of(job, cluster) as services, actors() as started:
            plan = next(iter(services.values()))[0]
            crowd = Crowd(started, cluster.nodes[plan.source.place.host], config)
            questions = _questions(Questions(job, Unsplit(config, initial_state(job.model), plan.sink.threads)))
            ends = {side: chain.endpoint for side, (_, chain) in services.items()}
            for turn in range(rounds + 1):
                told: dict[str, float] = {}
                for case in cases:
                    for place, side in take_turns(list(ends), turn):
                        seconds = _SECONDS if turn else _LEAST_S
                        found = crowd.measure(ends[side], config, case.clients, seconds, questions[case.batch])
                        rate = len(found.latencies_ms) / found.seconds
                        told[side] = max(rate, told.get(side, 0.0))
                        if turn:
                            self._keep(turn, place, case, side, found.latencies_ms, rate)
                shown = ", ".join(f"{side} {rate:.0f}" for side, rate in told.items())
                counted = "" if turn else " (not counted)"
                say(f"{_count(cases[0].nsfs, 'NSF')}, round {turn}/{rounds}{counted}: at most requests/s: {shown}")

    def _keep(self, turn: int, place: int, case: Case, side: str, latencies_ms: list[float], rate: float) -> None:
        detail = {
            "requests": len(latencies_ms),
            "p95": percentile(latencies_ms, 95) or 0.0,
            "p99": percentile(latencies_ms, 99) or 0.0,
        }
        values = {LATENCY: statistics.median(latencies_ms), REQUESTS: rate, SAMPLES: rate * case.batch}
        for quantity, value in values.items():
            self.samples[quantity].append(Sample(turn, place, case.name, side, value, detail))


def _questions(questions: Questions) -> dict[int, Question]:
    """A request of each size."""
    found = {}
    for batch in (1, LARGE):
        inputs, output = questions.draw(0, batch)
        found[batch] = Question(tuple(value.numpy() for value in as_inputs(inputs)), output.numpy())
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
