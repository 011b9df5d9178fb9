"""`msl bench msl`: step time of multi-hop split learning over the size of the batch and the number of stages."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from msl.actors.cluster import Session, session
from msl.actors.job import Job, prepare
from msl.actors.network import entered_network
from msl.bench import machine, plots
from msl.bench.fabric.parts import check_losses
from msl.bench.inference.lengths import of_length, own_stages
from msl.bench.learning import pages
from msl.bench.learning.sides import SFC, Trainer, check_batch, field_of
from msl.bench.result import Sample, take_turns
from msl.bench.several import write_several
from msl.bench.train import check_steps, long_enough
from msl.config import Config
from msl.metrics.summary import write_json
from msl.plan import lay_out

WARM_UP = 1
"""Steps of a turn before those that count: the first one after another side's turn takes longer."""


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    batches: tuple[int, ...]
    """Samples of a step, in rising order."""
    stages: tuple[int, ...]
    """Numbers of stages, in rising order."""
    rounds: int
    """How often, after one round that is not counted."""
    steps: int
    """Optimizer steps of a side in a round that count."""


class Case(NamedTuple):
    """A size of the batch on a number of stages."""

    stages: int
    batch: int
    micro_batch: int

    @property
    def name(self) -> str:
        """Its name among the results."""
        return f"stages{self.stages}_batch{self.batch}"

    def __str__(self) -> str:
        return f"{self.stages} stages, batch {self.batch} in {self.batch // self.micro_batch} micro-batches"


def run(config: Config, wanted: Wanted, folder: Path, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and write the results.

    Call it before the process starts threads: the testbed's hosts are network namespaces of their own.

    Args:
        config: the job.
        wanted: what is to be measured.
        folder: for the results.
        command: how the benchmark was started, for the record.
        say: told how it goes.

    Returns:
        The summary, as written to `summary.json`.

    Raises:
        ConfigError: a case cannot be trained.
        StageError: the losses of two sides differ.
        MslError: what else went wrong.
    """
    plots.require()
    found = machine.describe()
    cases = _cases(config, wanted)
    configs = of_length(config, wanted.stages, True, "msl")
    longest = configs[max(configs)]
    turns = {case: _Turns(wanted.steps) for case in cases}
    cuts: dict[Case, tuple[str, ...]] = {}
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(entered_network(longest, say))
        hosts, _ = lay_out(longest)
        cluster = stack.enter_context(session(longest, hosts, network, say))
        steered = network.fabric == SFC
        try:
            for case in cases:
                cuts[case] = _measure(configs[case.stages], case, wanted, turns[case], cluster, say)
        except BaseException:
            if cuts:
                _write(config, wanted, {case: turns[case] for case in cuts}, cuts, steered, folder, command, found)
                say(f"what was measured before is kept in {folder}")
            raise
    return _write(config, wanted, turns, cuts, steered, folder, command, found)


def _write(
    config: Config,
    wanted: Wanted,
    turns: Mapping[Case, _Turns],
    cuts: Mapping[Case, tuple[str, ...]],
    steered: bool,
    folder: Path,
    command: str,
    found: Mapping[str, str],
) -> dict[str, Any]:
    shown = {case.name: f"{case}, cut before {', '.join(cut)}" for case, cut in cuts.items()}
    count = sum(len(next(iter(of_case.losses.values()))) for of_case in turns.values())
    reports = pages.reports(
        pages.Measured(
            shown,
            [sample for of_case in turns.values() for sample in of_case.first],
            [sample for of_case in turns.values() for sample in of_case.driver],
            steered,
            count,
        ),
        wanted.steps,
        command,
        found,
    )
    title = f"Multi-hop split learning: {config.name}"
    document = write_several(folder, title, pages.setting(config, steered), reports)
    own = Case(own_stages(config), config.train.batch_size, config.train.micro_batch)
    summary = pages.headline(document, own.name) | document
    write_json(folder / "summary.json", summary)
    pages.plot(folder, reports[0], {case.name: f"{case.stages} stages,\nbatch {case.batch}" for case in cuts})
    return summary


def _cases(config: Config, wanted: Wanted) -> list[Case]:
    """All cases, with the job's own number of micro-batches."""
    micro_batches = -(-config.train.batch_size // config.train.micro_batch)
    cases = []
    for stages in wanted.stages:
        for batch in wanted.batches:
            check_batch(batch, stages, micro_batches)
            cases.append(Case(stages, batch, batch // micro_batches))
    return cases


@dataclass
class _Turns:
    """What the sides have done so far."""

    steps: int
    first: list[Sample] = field(default_factory=list)
    """Milliseconds of a step in the first stage: a round's median."""
    driver: list[Sample] = field(default_factory=list)
    """Milliseconds of a step from the driver's call until all are done: a round's mean."""
    losses: dict[str, list[float]] = field(default_factory=dict)

    def take(self, case: Case, turn: int, sides: Mapping[str, Trainer]) -> str:
        """Let each side train the first steps of the same epoch; returns a line on it."""
        shown = []
        first = turn * (WARM_UP + self.steps)
        for place, side in take_turns(list(sides), turn):
            # In one call, so that each step that counts begins while others may still be ending the one before.
            begin = time.perf_counter()
            told = sides[side].train_steps(turn, first, WARM_UP + self.steps)
            mean_ms = 1e3 * (time.perf_counter() - begin) / (WARM_UP + self.steps)
            self.losses.setdefault(side, []).extend(loss for loss, _ in told)
            median_ms = 1e3 * statistics.median(seconds for _, seconds in told[WARM_UP:])
            if turn:
                detail = {"steps": self.steps}
                self.first.append(Sample(turn, place, case.name, side, median_ms, detail))
                self.driver.append(Sample(turn, place, case.name, side, mean_ms, detail))
            shown.append(f"{side} {median_ms:.0f}")
        check_losses(self.losses)
        return f"a step takes ms: {', '.join(shown)}"


def _measure(
    config: Config, case: Case, wanted: Wanted, turns: _Turns, cluster: Session, say: Callable[[str], None]
) -> tuple[str, ...]:
    """All rounds of a case; returns its cut."""
    train = config.train.model_copy(update={"batch_size": case.batch, "micro_batch": case.micro_batch})
    job = _job(config.model_copy(update={"train": train}), wanted)
    with field_of(job, cluster) as sides:
        say(f"{case}: cut before {', '.join(sides.plan.cut)}")
        for turn in range(wanted.rounds + 1):
            told = turns.take(case, turn, sides.sides)
            say(f"round {turn}/{wanted.rounds}{'' if turn else ' (not counted)'}: {told}")
        return sides.plan.cut


def _job(config: Config, wanted: Wanted) -> Job:
    job = prepare(config)
    check_steps(job, WARM_UP + wanted.steps)
    return replace(job, config=long_enough(job, wanted.rounds, WARM_UP + wanted.steps))
