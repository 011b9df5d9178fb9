"""The benchmark's parts: each measures all its sides once a round, in turns, and gives samples by quantity."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from msl.actors.chain import Chain
from msl.bench import size
from msl.bench.fabric.load import MIB, Node, costs
from msl.bench.fabric.members import Members
from msl.bench.fabric.order import IN_FLIGHT, Order
from msl.bench.result import Sample, take_turns
from msl.errors import StageError
from msl.metrics.summary import percentile

Measured = dict[str, list[Sample]]
"""Samples by quantity."""
SIDES = ("sfc", "direct", "raw_sfc", "raw_direct")
BULK = {"bulk": False, "bulk_both_ways": True}
"""Cases of the bulk part, and whether the payload comes back."""
BULK_BYTES = 4 * MIB
IPERF = {"iperf": False, "iperf_reverse": True}
"""Cases of the iperf part, and whether the sink sends."""
SPLIT = ("user_per_byte", "system_per_byte", "softirq_per_byte")
"""Costs that another cost consists of."""
WARM_UP = 1
"""Training steps before those that count: the first ones after another part, or another side, take longer."""
_RTT_S, _BULK_S, _IPERF_S, _REST_S = 0.3, 1.0, 2.0, 0.5
_LEAST_S = 0.02
"""Of a sample in the round that is not counted, which checks every byte instead of measuring."""


class Part(Protocol):
    """Something that is measured in every round."""

    def round(self, turn: int) -> Measured:
        """Measure all sides once; round 0 is not counted."""
        ...

    def line(self, measured: Measured) -> str:
        """The round in a few words."""
        ...


@dataclass(frozen=True)
class RoundTrips:
    """From the source to the sink and back, one message at a time."""

    members: Members
    sizes: Sequence[int]

    def round(self, turn: int) -> Measured:
        """Each size over each side."""
        samples = []
        for num_bytes in self.sizes:
            for place, side in take_turns(SIDES, turn):
                order = Order(num_bytes, 1, _RTT_S if turn else _LEAST_S, echo=True, whole=not turn)
                trips_us = [trip_s * 1e6 for trip_s in self.members.measure(side, order).trips_s]
                detail = {
                    "messages": len(trips_us),
                    "mean": statistics.fmean(trips_us),
                    "p10": percentile(trips_us, 10) or 0.0,
                    "p90": percentile(trips_us, 90) or 0.0,
                }
                samples.append(Sample(turn, place, size.name(num_bytes), side, statistics.median(trips_us), detail))
        return {"rtt_us": samples}

    def line(self, measured: Measured) -> str:
        """The smallest size."""
        return f"{size.show(self.sizes[0])} in {_values(measured['rtt_us'], size.name(self.sizes[0]))} us"


@dataclass(frozen=True)
class Bulk:
    """Many messages at once, one way or both; and what each byte costs the machine."""

    members: Members
    nodes: Sequence[Node]
    idle_s: list[float]
    """CPU seconds that the machine spends in a second without traffic, once a round; filled here."""

    def round(self, turn: int) -> Measured:
        """Each case over each side."""
        rates: list[Sample] = []
        spent: list[Sample] = []
        split: list[Sample] = []
        self._rest()
        for case, echo in BULK.items():
            for place, side in take_turns(SIDES, turn):
                order = Order(BULK_BYTES, IN_FLIGHT, _BULK_S if turn else _LEAST_S, echo, whole=not turn)
                before = self.members.load(self.nodes)
                passed = self.members.measure(side, order)
                load = self.members.load(self.nodes) - before
                payload = passed.messages * BULK_BYTES
                detail = {"messages": passed.messages, "seconds": passed.seconds, "payload": payload}
                rates.append(Sample(turn, place, case, side, payload / MIB / passed.seconds, detail))
                moved = payload * (1 + echo)  # what goes there and back counts twice
                counted = {**detail, "payload": moved, "drops": load.drops, "retransmitted": load.retransmitted}
                for name, cost in costs(load, moved).items():
                    kept = split if name in SPLIT else spent
                    kept.append(Sample(turn, place, name + case.removeprefix("bulk"), side, cost, counted))
        return {"rate_mib_s": rates, "cost": spent, "cpu_split": split}

    def line(self, measured: Measured) -> str:
        """One way."""
        return f"one way {_values(measured['rate_mib_s'], 'bulk')} MiB/s"

    def _rest(self) -> None:
        before = self.members.load(self.nodes)
        time.sleep(_REST_S)
        self.idle_s.append((self.members.load(self.nodes) - before).machine_s / _REST_S)


@dataclass(frozen=True)
class Steps:
    """Training steps of the job's chain over both fabrics, from the same seed.

    Args:
        chains: of each side.
        steps: optimizer steps of a side in a round.
        losses: of each side, step by step; filled here.
    """

    chains: Mapping[str, Chain]
    steps: int
    losses: dict[str, list[float]]

    def round(self, turn: int) -> Measured:
        """The first steps of the same epoch over each side.

        Raises:
            StageError: a loss differs between the sides.
        """
        samples = []
        for place, side in take_turns(list(self.chains), turn):
            first = turn * (WARM_UP + self.steps)
            losses = self.chains[side].train_steps(turn, first, WARM_UP)
            start = time.perf_counter()
            losses += self.chains[side].train_steps(turn, first + WARM_UP, self.steps)
            seconds = time.perf_counter() - start
            self.losses.setdefault(side, []).extend(losses)
            detail = {"messages": self.steps, "seconds": seconds}
            samples.append(Sample(turn, place, "step", side, seconds / self.steps, detail))
        check_losses(self.losses)
        return {"seconds_per_step": samples}

    def line(self, measured: Measured) -> str:
        """A step."""
        return f"a step takes {_values(measured['seconds_per_step'], 'step')} s"


@dataclass(frozen=True)
class Ceiling:
    """iperf3 from source to sink and back, with no NSF between.

    Args:
        members: run iperf3.
        addresses: of each side, at which the sink is reached.
    """

    members: Members
    addresses: Mapping[str, str]

    def round(self, turn: int) -> Measured:
        """Each way over each side."""
        samples = []
        for case, reverse in IPERF.items():
            for place, side in take_turns(list(self.addresses), turn):
                moved = self.members.iperf(self.addresses[side], _IPERF_S if turn else 1.0, reverse)
                detail = {
                    "seconds": moved.seconds,
                    "payload": moved.num_bytes,
                    "retransmitted": moved.retransmits,
                }
                samples.append(Sample(turn, place, case, side, moved.num_bytes / MIB / moved.seconds, detail))
        return {"iperf_mib_s": samples}

    def line(self, measured: Measured) -> str:
        """One way."""
        return f"iperf3 {_values(measured['iperf_mib_s'], 'iperf')} MiB/s"


def check_losses(losses: Mapping[str, Sequence[float]]) -> None:
    """Check that all sides computed the same bits.

    Raises:
        StageError: they did not; names the first step.
    """
    for step, of_step in enumerate(zip(*losses.values(), strict=True)):
        if len({loss.hex() for loss in of_step}) > 1:
            told = ", ".join(f"{loss!r} over {side}" for side, loss in zip(losses, of_step, strict=True))
            raise StageError(f"step {step}: the losses are not bit-identical: {told}")


def _values(samples: Sequence[Sample], case: str) -> str:
    """The values of a case, side by side, in the order of their names."""
    found = {sample.side: sample.value for sample in samples if sample.case == case}
    return ", ".join(f"{side} {found[side]:.4g}" for side in sorted(found))
