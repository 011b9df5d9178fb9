"""What control costs: a training step with the controller and its measuring on, against off, on the same chain."""

from __future__ import annotations

import contextlib
import statistics
import time

from msl.actors.chain import running
from msl.actors.job import Job
from msl.actors.member import Report
from msl.bench.result import Sample, take_turns
from msl.bench.steer.field import Field
from msl.errors import StageError
from msl.pipeline.checkpoint import initial_state

ON, OFF = "on", "off"
STEP, PROBES, CPU = "step_ms", "probe_bytes_per_s", "cpu_ms_per_s"
_SETTLE_S = 1.5


def measure(field: Field, job: Job, rounds: int, steps: int) -> dict[str, list[Sample]]:
    """Train in turns with and without a controller.

    Returns:
        By quantity: milliseconds of a step; bytes of probes a second; CPU milliseconds of measuring a second.

    Raises:
        StageError: the losses of both sides differ.
    """
    found: dict[str, list[Sample]] = {STEP: [], PROBES: [], CPU: []}
    walls: dict[int, float] = {}

    def watch(report: Report) -> None:
        if report.name == "source":
            walls.update({record.step: record.wall_ms for record in report.records})

    with field.chain(10_000) as (steered, agents):
        plan = job.plan({host: node.cpus for host, node in field.session.nodes.items()}, steered)
        with running(job.config, plan, field.session, initial_state(job.model), watch) as chain:
            number = 0
            for turn in range(rounds + 1):
                for place, side in take_turns((ON, OFF), turn):
                    with contextlib.ExitStack() as stack:
                        if side == ON:
                            stack.enter_context(field.controlled(agents, steered))
                            time.sleep(_SETTLE_S)
                        before, begin = agents.call("expense"), time.monotonic()
                        losses = chain.train_steps(turn, number, steps + 1)
                        after, seconds = agents.call("expense"), time.monotonic() - begin
                    if any(loss != loss for loss in losses):
                        raise StageError("a loss is not a number")
                    times = [walls.pop(step) for step in range(number, number + steps + 1)][1:]
                    number += steps + 1
                    if not turn:
                        continue
                    found[STEP].append(Sample(turn, place, "step", side, statistics.median(times)))
                    if side == ON:
                        cpu_s = sum(after[host][0] - before[host][0] for host in after)
                        sent = sum(after[host][1] - before[host][1] for host in after)
                        found[CPU].append(Sample(turn, place, "all hosts", ON, 1e3 * cpu_s / seconds))
                        found[PROBES].append(Sample(turn, place, "all hosts", ON, sent / seconds))
                if turn:
                    last = {sample.side: sample.value for sample in found[STEP][-2:]}
                    told = f"{last[ON]:.0f} ms with control, {last[OFF]:.0f} without"
                    field.say(f"price {turn}/{rounds}: a step takes {told}")
            chain.end()
    return found
