"""The ways to train the same stages on the same hosts: the chain over each fabric, Ray calls, and torch over gloo."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from msl.actors.agents import steered_chain
from msl.actors.chain import Chain, running
from msl.actors.cluster import Session
from msl.actors.job import Job
from msl.actors.member import Report
from msl.bench.rivals.contest import Contest
from msl.bench.rivals.gloo import GlooPipeline
from msl.bench.rivals.ray_training import RayCallsTraining
from msl.errors import ConfigError
from msl.pipeline.batches import training_batches
from msl.pipeline.checkpoint import initial_state
from msl.plan import Plan, lay_out

DIRECT, SFC, RAY, GLOO = "direct", "sfc", "ray", "gloo"


class Step(NamedTuple):
    """An optimizer step as the first stage saw it."""

    loss: float
    seconds: float
    """From before the batch is made until the optimizer has stepped."""


class Trainer(Protocol):
    """A side."""

    def train_steps(self, epoch: int, first_step: int, count: int) -> list[tuple[float, float]]:
        """Train the first steps of an epoch; loss and seconds of each."""
        ...


class ChainTrainer:
    """The chain, with the times that its source records.

    A source's step begins when its batch is made. What it takes to make one is measured here, on the same batches,
    and added: the other sides' steps begin before that.

    Args:
        job: what is trained.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._wall_s: dict[int, float] = {}
        self.chain: Chain | None = None

    def watch(self, report: Report) -> None:
        """Take the reports of the members."""
        if report.name == "source":
            self._wall_s |= {record.step: record.wall_ms / 1e3 for record in report.records}

    def train_steps(self, epoch: int, first_step: int, count: int) -> list[tuple[float, float]]:
        """Train the first steps of an epoch; loss and seconds of each."""
        assert self.chain is not None
        making_s = self._making_s(epoch, count)
        losses = self.chain.train_steps(epoch, first_step, count)
        return [Step(loss, making_s + self._wall_s.pop(step)) for step, loss in enumerate(losses, first_step)]

    def _making_s(self, epoch: int, count: int) -> float:
        """The time to make a batch."""
        config = self._job.config
        train = config.train
        batches = training_batches(self._job.data.train, train.batch_size, train.micro_batch, config.seed, epoch)
        times = []
        begin = time.perf_counter()
        for _ in islice(batches, count):
            times.append(time.perf_counter() - begin)
            begin = time.perf_counter()
        return statistics.median(times)


@dataclass(frozen=True)
class Field:
    """All sides of one case, ready to train."""

    plan: Plan
    sides: Mapping[str, Trainer]


@contextlib.contextmanager
def field_of(job: Job, session: Session) -> Iterator[Field]:
    """Start all sides of a job; each begins at the same weights.

    Raises:
        MslError: a side could not be started.
    """
    config = job.config
    hosts, places = lay_out(config)
    cpus = {host: node.cpus for host, node in session.nodes.items()}
    state = initial_state(job.model)
    sides: dict[str, Trainer] = {}
    with contextlib.ExitStack() as stack:
        steered = stack.enter_context(steered_chain(config, session, hosts, places))
        plans = {DIRECT: job.plan(cpus)} | ({SFC: job.plan(cpus, steered)} if steered is not None else {})
        for fabric, plan in plans.items():
            sides[fabric] = trainer = ChainTrainer(job)
            trainer.chain = stack.enter_context(running(config, plan, session, state, trainer.watch))
        plan = plans[DIRECT]
        contest = Contest.of(config, plan, session, state, plan.source.threads)
        sides[RAY] = stack.enter_context(RayCallsTraining(contest))
        sides[GLOO] = stack.enter_context(GlooPipeline(contest))
        yield Field(plan, sides)


def check_batch(batch: int, stages: int, micro_batches: int) -> None:
    """Refuse what torch's 1F1B cannot do.

    Raises:
        ConfigError: fewer micro-batches than stages, or of different sizes.
    """
    if batch % micro_batches:
        raise ConfigError(f"--batches {batch}: cannot be cut into {micro_batches} micro-batches of one size")
    if micro_batches < stages:
        raise ConfigError(
            f"--stages {stages}: the job has {micro_batches} micro-batches a step; torch's 1F1B needs one for each"
            " stage: set train.micro_batch to less"
        )
