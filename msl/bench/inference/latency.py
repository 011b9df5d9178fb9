"""Round trips of single requests, over the size of the mini-batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from msl.bench.inference.sides import COMPILED, UNSPLIT, Field, check_output
from msl.bench.result import Sample, take_turns
from msl.bench.rivals.compiled import CompiledGraph

_MOST, _FEWEST = 30, 2
_ABOUT_S = 0.4
"""A side's time for one size of the batch in a round."""
_WARM_UP_BELOW = 32
"""Samples of a batch: smaller ones are asked for once before they count, for another side has had the caches."""


def case_of(batch: int) -> str:
    """Name of a size of the batch."""
    return f"batch{batch}"


class Latency:
    """The latency of all sides, in turns.

    Args:
        field: the sides.
        batches: samples of a request, in rising order.
    """

    def __init__(self, field: Field, batches: Sequence[int]) -> None:
        self._field = field
        self._batches = batches
        self.rounds: list[Sample] = []
        """Medians of a round's requests, in ms."""
        self.requests: list[Sample] = []
        """Each request, in ms."""

    def round(self, turn: int) -> str:
        """Measure all sides once; round 0 is not counted. Returns a line on it.

        Raises:
            StageError: an output is not the unsplit model's.
        """
        told: dict[str, float] = {}
        if turn % 2:
            self._take_graph(turn, 0, told)
        for batch in self._batches:
            for place, side in take_turns(list(self._field.rivals), turn):
                self._take(turn, place + turn % 2, side, self._field.rivals[side], batch, told)
        if not turn % 2:
            self._take_graph(turn, len(self._field.rivals), told)
        shown = ", ".join(f"{side} {milliseconds:.1f}" for side, milliseconds in told.items())
        return f"batch {self._batches[0]} takes ms: {shown}"

    def _take_graph(self, turn: int, place: int, told: dict[str, float]) -> None:
        """The compiled graph's turn: it lives no longer, because its threads never sleep."""
        with CompiledGraph(self._field.contest, self._batches[-1]) as graph:
            for batch in self._batches:
                self._take(turn, place, COMPILED, graph, batch, told)

    def _take(self, turn: int, place: int, side: str, rival: Any, batch: int, told: dict[str, float]) -> None:
        inputs, expected = self._field.questions.draw(turn, batch)
        most = max(_FEWEST, min(_MOST, 160 // batch)) if turn else 1
        if batch < _WARM_UP_BELOW:
            check_output(side, rival.infer(inputs), expected)
        times_ms: list[float] = []
        begin = time.perf_counter()
        while len(times_ms) < most and (len(times_ms) < _FEWEST or time.perf_counter() - begin < _ABOUT_S):
            start = time.perf_counter()
            output = rival.infer(inputs)
            times_ms.append(1e3 * (time.perf_counter() - start))
            check_output(side, output, expected)
        median = statistics.median(times_ms)
        if batch == self._batches[0]:
            told[side] = median
        if turn:
            self.rounds.append(Sample(turn, place, case_of(batch), side, median, {"requests": len(times_ms)}))
            self.requests += [Sample(turn, place, case_of(batch), side, value) for value in times_ms]


def overheads(samples: Sequence[Sample]) -> list[Sample]:
    """What each side takes more than the unsplit model did in the same round."""
    base = {(sample.round, sample.case): sample.value for sample in samples if sample.side == UNSPLIT}
    return [
        Sample(s.round, s.place, s.case, s.side, s.value - base[s.round, s.case], s.detail)
        for s in samples
        if s.side != UNSPLIT
    ]
