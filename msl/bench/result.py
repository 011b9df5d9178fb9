"""What a benchmark measured: samples of sides that took turns, their medians and spread, and ratios between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from msl.errors import ConfigError
from msl.metrics.summary import percentile

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One measurement of one side."""

    round: int
    place: int
    """When in its round it was taken, from 0 on."""
    case: str
    """What was measured, e.g. a message size; only samples of the same case are compared."""
    side: str
    value: float
    detail: Mapping[str, float] = field(default_factory=dict)
    """What the value was computed from; the same names in all samples of a benchmark."""


@dataclass(frozen=True)
class Spread:
    """Median, and the range that holds the middle 80% of the values."""

    median: float
    p10: float
    p90: float
    count: int


@dataclass(frozen=True)
class Ratio:
    """How two sides compare, in each case."""

    name: str
    """Its key in summary.json; `{case}` stands for the case."""
    over: str
    under: str

    def key(self, case: str) -> str:
        """Its key in summary.json for a case."""
        return self.name.format(case=case)

    def __str__(self) -> str:
        return f"{self.over} / {self.under}"


def spread(values: Sequence[float]) -> Spread:
    """Median and spread of at least one value."""
    p10, median, p90 = (percentile(values, percent) for percent in (10, 50, 90))
    if p10 is None or median is None or p90 is None:
        raise ConfigError("nothing was measured; ask for at least one round")
    return Spread(median, p10, p90, len(values))


def values(samples: Sequence[Sample], case: str, side: str) -> list[float]:
    """The values of one side of a case, in the order in which they were measured."""
    return [sample.value for sample in samples if (sample.case, sample.side) == (case, side)]


def ratios(samples: Sequence[Sample], case: str, ratio: Ratio) -> list[float]:
    """One ratio per round that has both sides of a case.

    Two sides of a round were measured close to each other, so that what slows the machine down for a while slows
    both, and cancels out in their ratio; it does not in a ratio of two medians.
    """
    over, under = (
        {sample.round: sample.value for sample in samples if (sample.case, sample.side) == (case, side)}
        for side in (ratio.over, ratio.under)
    )
    return [over[turn] / under[turn] for turn in sorted(over.keys() & under.keys())]


def take_turns(sides: Sequence[T], turn: int) -> Iterator[tuple[int, T]]:
    """The sides with their places in a round: forwards in even rounds, backwards in odd ones (A B, B A, ...).

    What drifts steadily, or favours who comes first, then favours each side in turn.
    """
    yield from enumerate(sides if turn % 2 == 0 else reversed(sides))
