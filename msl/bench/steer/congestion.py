"""Training while cross-traffic fills the plane that its path takes: step by step, with and without steering."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from msl.actors.chain import running
from msl.actors.controller import Watcher
from msl.actors.job import Job
from msl.actors.member import Report
from msl.bench.result import Sample
from msl.bench.steer.field import Field
from msl.bench.steer.traffic import filled
from msl.errors import StageError
from msl.net.sfc.report import ChangeReport
from msl.pipeline.checkpoint import initial_state

RATE_MBIT = 200
STEERED, STATIC = "steered", "static"
BEFORE, DURING, AFTER = "before", "during", "after"
_RECOVERED_AFTER_S = 2.0
"""Steps that begin so long after the congestion has begun must be as quick as before."""


@dataclass(frozen=True)
class StepAt:
    """An optimizer step."""

    number: int
    begin_s: float
    """Since the congestion began; negative before it."""
    wall_ms: float
    phase: str


@dataclass
class Course:
    """One side's steps in one round."""

    side: str
    turn: int
    steps: list[StepAt] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    changes: list[ChangeReport] = field(default_factory=list)
    congested_epoch_s: float = 0.0
    relieved_s: float = 0.0
    """When the congestion ended, since it began."""

    def median_ms(self, phase: str) -> float:
        """Of the steps of a phase; during congestion those that began two seconds after its begin."""
        late = _RECOVERED_AFTER_S if phase == DURING else float("-inf")
        chosen = [step.wall_ms for step in self.steps if step.phase == phase and step.begin_s >= late]
        if not chosen:
            chosen = [step.wall_ms for step in self.steps if step.phase == phase]
        return statistics.median(chosen)


def measure(field_: Field, job: Job, turn: int, steps: Sequence[int]) -> list[Course]:
    """Both sides once: each trains the same steps from the same weights, before, during and after the congestion.

    Args:
        field_: the testbed.
        job: what is trained.
        turn: of the benchmark.
        steps: of each phase.

    Raises:
        StageError: a step was lost, repeated, or computed another loss.
    """
    sides = (STEERED, STATIC) if turn % 2 == 0 else (STATIC, STEERED)
    courses = [_train(field_, job, side, turn, steps) for side in sides]
    first = courses[0]
    for course in courses:
        lost = lost_steps(course, sum(steps))
        if lost or course.losses != first.losses:
            raise StageError(f"{course.side}: {lost} steps were lost or repeated, or a loss is another one")
    return courses


def lost_steps(course: Course, wanted: int) -> int:
    """Steps that are missing, or were done more than once."""
    done = [step.number for step in course.steps]
    return len(set(range(1, wanted + 1)) - set(done)) + len(done) - len(set(done))


def samples_of(courses: Sequence[Course]) -> list[Sample]:
    """The medians of each phase, by phase and side."""
    return [
        Sample(course.turn, 0, phase, course.side, course.median_ms(phase))
        for course in courses
        for phase in (BEFORE, DURING, AFTER)
    ]


def _train(field_: Field, job: Job, side: str, turn: int, steps: Sequence[int]) -> Course:
    course = Course(side, turn)
    walls: dict[int, float] = {}

    def watch(report: Report) -> None:
        if report.name == "source":
            walls.update({record.step: record.wall_ms for record in report.records})

    with field_.chain(RATE_MBIT) as (steered, agents), contextlib.ExitStack() as stack:
        plan = job.plan({host: node.cpus for host, node in field_.session.nodes.items()}, steered)
        chain = stack.enter_context(running(job.config, plan, field_.session, initial_state(job.model), watch))
        if side == STEERED:
            watcher = Watcher(field_.say, changed=course.changes.append)
            stack.enter_context(field_.controlled(agents, steered, watcher))
        course.losses += chain.train_steps(0, 0, 1)  # the first one takes longer
        begun: dict[int, float] = {}
        number = 1
        congestion = contextlib.ExitStack()
        stack.callback(congestion.close)
        congested_s = 0.0
        for phase, count in zip((BEFORE, DURING, AFTER), steps, strict=True):
            if phase == DURING:
                congestion.enter_context(filled(field_.testbed, agents.domain))
                congested_s, course.congested_epoch_s = time.monotonic(), time.time()
            elif phase == AFTER:
                congestion.close()
                course.relieved_s = time.monotonic() - congested_s
            for _ in range(count):
                begun[number] = time.monotonic()
                course.losses += chain.train_steps(0, number, 1)
                course.steps.append(StepAt(number, 0.0, walls[number], phase))
                number += 1
        course.steps = [replace(step, begin_s=begun[step.number] - congested_s) for step in course.steps]
        chain.end()
    return course
