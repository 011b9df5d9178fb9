"""`msl bench train`: a step of the chain against a step of the unsplit model, on the same batches."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msl.actors.agents import steered_chain
from msl.actors.chain import Chain, running
from msl.actors.cluster import Session, session
from msl.actors.job import Job, prepare
from msl.actors.network import entered_network
from msl.bench import machine, plots
from msl.bench.calls import Actors, actors, answer
from msl.bench.report import Report, ratio_lines, write
from msl.bench.result import Ratio, Sample, take_turns
from msl.bench.unsplit import UnsplitActor
from msl.config import Config
from msl.errors import ConfigError, StageError
from msl.pipeline.batches import size, steps_per_epoch
from msl.pipeline.checkpoint import initial_state
from msl.plan import Plan, headline, lay_out

CHAIN, UNSPLIT, ONE_THREAD = "chain", "unsplit", "unsplit_1_thread"
_CASE = "step"

Steps = Callable[[int, int, int], list[float]]
"""Trains the first steps of an epoch, called with (epoch, number of the first step, how many); their losses."""


def run(
    config: Config, folder: Path, rounds: int, steps: int, command: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, and write the results.

    Call it before the process starts threads: the local cluster has a network namespace of its own.

    Args:
        config: the job.
        folder: for the results.
        rounds: how often each side is measured, after one round that is not counted.
        steps: optimizer steps of a side in a round.
        command: how the benchmark was started, for the record.
        say: told how it goes.

    Returns:
        The summary, as written to `summary.json`.

    Raises:
        StageError: the chain and the unsplit model did not compute the same losses, or a stage failed.
        MslError: what else went wrong.
    """
    plots.require()
    found = machine.describe()
    _, places = lay_out(config)
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(entered_network(config, say))
        job = prepare(config)
        check_steps(job, steps)
        config = long_enough(job, rounds, steps)
        turns = _Turns(config, steps)
        cluster = stack.enter_context(session(config, job.hosts, network, say))
        started = stack.enter_context(actors())
        steered = stack.enter_context(steered_chain(config, cluster, job.hosts, places))
        plan = job.plan({host: node.cpus for host, node in cluster.nodes.items()}, steered)
        say(headline(plan))
        threads = _threads(plan, cluster)
        unsplit = _start_unsplit(config, plan, cluster, started, threads)
        with running(config, plan, cluster, initial_state(job.model), lambda _report: None) as chain:
            sides = _sides(config, chain, unsplit)
            for turn in range(rounds + 1):
                say(f"round {turn}/{rounds}{'' if turn else ' (not counted)'}: {turns.take(turn, sides)}")
                _compare(turns.losses, plan)
            chain.end()
    report = _report(turns, plan, threads, command, found)
    summary = write(folder, report)
    plots.rounds(folder / "rounds.png", turns.samples, list(report.sides), ("round", "seconds per step"))
    for line in ratio_lines(report):
        say(line)
    return summary


@dataclass
class _Turns:
    """What the sides have done so far."""

    config: Config
    steps: int
    """Of a side in a round."""
    samples: list[Sample] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    """Of each side, step by step, those of the round that is not counted too."""

    def take(self, turn: int, sides: Mapping[str, Steps]) -> str:
        """Let each side train the first steps of the same epoch; returns a line on it."""
        shown = []
        for place, side in take_turns(list(sides), turn):
            start = time.perf_counter()
            losses = sides[side](turn, turn * self.steps, self.steps)
            seconds = time.perf_counter() - start
            self.losses.setdefault(side, []).extend(losses)
            detail = {"steps": self.steps, "seconds": seconds}
            if turn:
                self.samples.append(Sample(turn, place, _CASE, side, seconds / self.steps, detail))
            shown.append(f"{side} {seconds / self.steps:.3f} s")
        return f"a step takes {', '.join(shown)}"


def check_steps(job: Job, steps: int) -> None:
    """Refuse more steps than an epoch has."""
    available = _steps_per_epoch(job)
    if steps > available:
        raise ConfigError(
            f"--steps {steps}: an epoch of this configuration has {available} steps; ask for at most that"
        )


def _steps_per_epoch(job: Job) -> int:
    return steps_per_epoch(size(job.data.train), job.config.train.batch_size)


def long_enough(job: Job, rounds: int, steps: int) -> Config:
    """The configuration with so many epochs that a learning-rate schedule over them does not run out."""
    config = job.config
    epochs = max(config.train.epochs, -(-(rounds + 1) * steps // _steps_per_epoch(job)))
    return config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})


def _threads(plan: Plan, cluster: Session) -> int:
    """Threads of the unsplit model: those of all stages together, as far as its machine has cores for them."""
    local = cluster.cluster is not None
    cores = len(os.sched_getaffinity(0)) if local else cluster.nodes[plan.source.place.host].cpus
    return min(sum(_stage_threads(plan)), cores)


def _stage_threads(plan: Plan) -> list[int]:
    return [member.threads for member in plan.members if member.place.stage is not None]


def _start_unsplit(config: Config, plan: Plan, cluster: Session, started: Actors, threads: int) -> dict[str, Any]:
    """Unsplit trainers on the source's host: with all threads, and with one if that is not the same."""
    node = cluster.nodes[plan.source.place.host]
    numbers = {UNSPLIT: threads} | ({ONE_THREAD: 1} if threads > 1 else {})
    trainers = {
        side: started.start(UnsplitActor, node, str(Path.cwd()), config, number) for side, number in numbers.items()
    }
    for side, trainer in trainers.items():
        answer(trainer.ready.remote(), side, config.timeouts.start_s)
    return trainers


def _sides(config: Config, chain: Chain, unsplit: Mapping[str, Any]) -> dict[str, Steps]:
    """What trains some steps, for each side."""

    def steps_of(side: str, trainer: Any) -> Steps:
        return lambda epoch, first, count: answer(
            trainer.train_steps.remote(epoch, first, count), side, count * config.timeouts.step_s
        )

    return {CHAIN: chain.train_steps} | {side: steps_of(side, trainer) for side, trainer in unsplit.items()}


def _one_thread_side(losses: Mapping[str, list[float]]) -> str:
    """The side that trains the unsplit model with one thread."""
    return ONE_THREAD if ONE_THREAD in losses else UNSPLIT


def _compare(losses: Mapping[str, list[float]], plan: Plan) -> None:
    """Check that chain and unsplit model compute the same bits, which they do if each stage has one thread."""
    if set(_stage_threads(plan)) != {1}:
        return
    unsplit = losses[_one_thread_side(losses)]
    for step, (ours, theirs) in enumerate(zip(losses[CHAIN], unsplit, strict=True)):
        if ours != theirs:
            raise StageError(f"step {step}: the loss of the chain is {ours!r}, of the unsplit model {theirs!r}")


def _report(turns: _Turns, plan: Plan, threads: int, command: str, found: Mapping[str, str]) -> Report:
    train = turns.config.train
    under = _one_thread_side(turns.losses)
    on = f"an actor on the source's host, {threads} thread{'s' * (threads != 1)}"
    sides = {
        CHAIN: f"{len(_stage_threads(plan))} stages in actors on {len(plan.hosts)} hosts of the config's cluster,"
        f" {' + '.join(map(str, _stage_threads(plan)))} threads, at most {plan.in_flight} micro-batches in flight;"
        f" cut before {', '.join(plan.cut)}.",
        UNSPLIT: f"the unsplit model in {on}: as many as the stages have together, as far as there are cores.",
    }
    if under == ONE_THREAD:
        sides[ONE_THREAD] = "the same with one thread, in an actor of its own."
    return Report(
        bench="train",
        title=f"Training {plan.name}: the chain against the unsplit model",
        command=command,
        machine=found,
        quantity="seconds_per_step",
        measured=(
            f"Optimizer steps of {train.batch_size} samples in micro-batches of {train.micro_batch}"
            f" (`{turns.config.model.factory}`). In a round each side trains the first {turns.steps} steps of the same"
            " epoch, batches made on the way, and the driver takes the time from its call to the source, or to the"
            " unsplit model, until the answer is there. The other sides' processes are idle meanwhile. A first round is"
            " not counted."
        ),
        cases={_CASE: "one step"},
        sides=sides,
        samples=turns.samples,
        ratios=[
            Ratio("step_chain_over_unsplit", CHAIN, UNSPLIT),
            Ratio("step_chain_over_unsplit_1_thread", CHAIN, under),
        ],
        findings=[_finding(turns.losses, plan)],
    )


def _finding(losses: Mapping[str, list[float]], plan: Plan) -> str:
    """How the losses of chain and unsplit model compare, as a sentence."""
    pairs = list(zip(losses[CHAIN], losses[_one_thread_side(losses)], strict=True))
    if all(ours == theirs for ours, theirs in pairs):
        return (
            f"The losses of all {len(pairs)} steps are bit-identical between the chain and the unsplit model with one"
            f" thread; the last one is {pairs[-1][0]!r}."
        )
    most = max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)
    return (
        f"Stages with more than one thread ({max(_stage_threads(plan))} here) round differently from one thread: the"
        f" losses of {len(pairs)} steps differ by up to {most:.1e} of their value from the unsplit model's with one."
    )
