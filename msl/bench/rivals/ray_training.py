"""Training by plain Ray calls: each stage an actor, with activations and gradients passed on as references."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import ray
import torch

from msl.bench.calls import answer
from msl.bench.rivals.arrays import Array, accept_received, as_arrays
from msl.bench.rivals.contest import Contest, Rival, Seat, StageActors
from msl.bench.rivals.schedule import Work, one_forward_one_backward
from msl.errors import ConfigError
from msl.pipeline.batches import Batch, training_batches
from msl.pipeline.build import build_data, build_loss, build_stage
from msl.pipeline.exchange import measure
from msl.pipeline.runtime import set_threads
from msl.pipeline.source import Tally
from msl.pipeline.stage import StageState

Crossing = list[tuple[Array, bool]]
"""Activations, and whether each wants a gradient."""
Gradients = list[Array | None]


@ray.remote
class TrainingStage:
    """A stage with its optimizer; the first one has the data, the last one the loss.

    Args:
        seat: which one.
        state: of the unsplit model.
    """

    def __init__(self, seat: Seat, state: StageState) -> None:
        config = seat.config
        self._seat = seat
        self._stage = build_stage(config, seat.modules(state)[seat.stage], seat.plan.train_samples)
        self._stage.load(state)
        self._data = build_data(config).train if seat.is_first else None
        self._loss = build_loss(config) if seat.is_last else None
        self._batches: Iterator[Batch] = iter(())
        accept_received()

    def begin(self, epoch: int) -> None:
        """First stage: the next batches are those of this epoch, from the first one on."""
        assert self._data is not None
        train = self._seat.config.train
        self._batches = training_batches(self._data, train.batch_size, train.micro_batch, self._seat.config.seed, epoch)

    @ray.method(num_returns=2, enable_task_events=False)
    def enter(self, step: int, micro_batch: int) -> tuple[Crossing, list[Any]]:
        """First stage: forward pass; activations, and for the last stage the target and the samples of the step."""
        set_threads(self._seat.threads)
        if micro_batch == 0:
            self._batch = next(self._batches)
        piece = self._batch.micro_batches[micro_batch]
        outputs = self._stage.forward(piece.inputs, step, micro_batch)
        return _crossing(outputs), [*as_arrays([piece.target]), self._batch.samples]

    @ray.method(enable_task_events=False)
    def forward(self, crossing: Crossing, step: int, micro_batch: int) -> Crossing:
        """Forward pass of a stage in the middle."""
        set_threads(self._seat.threads)
        return _crossing(self._stage.forward(_received(crossing), step, micro_batch))

    @ray.method(num_returns=2, enable_task_events=False)
    def turn(self, crossing: Crossing, goal: list[Any], step: int, micro_batch: int) -> tuple[Array, Gradients]:
        """Last stage: forward pass, loss and backward pass; the METRIC and the gradients."""
        set_threads(self._seat.threads)
        assert self._loss is not None
        (output,) = self._stage.forward(_received(crossing), step, micro_batch)
        target = torch.tensor(goal[0])
        loss = self._loss(output, target)
        metric = measure(loss, output, target)
        grads = torch.autograd.grad(loss * (len(target) / goal[1]), [output])
        return as_arrays([metric])[0], _gradients(self._stage.backward(grads))

    @ray.method(enable_task_events=False)
    def backward(self, gradients: Gradients) -> Gradients:
        """Backward pass of the oldest forward pass."""
        set_threads(self._seat.threads)
        grads = [None if array is None else torch.from_numpy(array) for array in gradients]
        return _gradients(self._stage.backward(grads))

    @ray.method(enable_task_events=False)
    def step(self) -> None:
        """Optimizer step."""
        set_threads(self._seat.threads)
        self._stage.step()


def _crossing(outputs: list[torch.Tensor]) -> Crossing:
    return [(array, t.requires_grad) for array, t in zip(as_arrays(outputs), outputs, strict=True)]


def _received(crossing: Crossing) -> list[torch.Tensor]:
    return [torch.from_numpy(array).requires_grad_(wanting) for array, wanting in crossing]


def _gradients(grads: list[torch.Tensor | None]) -> Gradients:
    return [None if grad is None else as_arrays([grad])[0] for grad in grads]


class RayCallsTraining(Rival):
    """The stages as Ray actors that the driver calls, all calls of a step at once.

    An actor takes its calls in the order in which they were submitted, which is that of one-forward-one-backward. As
    in the chain the data are at the first stage, and targets go on to the last one. Losses are bit-identical to the
    unsplit model's with as many threads.

    Args:
        contest: what is trained, and where.

    Raises:
        ConfigError: there is only one stage.
        MslError: an actor could not be started.
    """

    def __init__(self, contest: Contest) -> None:
        if len(contest.stages) < 2:
            raise ConfigError("split: this rival needs two stages or more")
        self._contest = contest
        self._stages = StageActors(contest, TrainingStage, "Ray calls")

    def train_steps(self, epoch: int, first_step: int, count: int) -> list[tuple[float, float]]:
        """Train the first steps of an epoch.

        Args:
            epoch: whose batches are taken.
            first_step: number of the first step, from the beginning of the training.
            count: number of steps.

        Returns:
            Loss and wall seconds of each step. The driver, on the first stage's host, takes the time from before the
            first call of a step, in which the batch is made, until all stages' optimizers have stepped.

        Raises:
            MslError: a stage failed, or did not answer within `timeouts.step_s`.
        """
        self._stages.call(0, "begin", self._contest.config.timeouts.start_s, epoch)
        result = []
        for index in range(count):
            begin = time.perf_counter()
            loss = self._train_step(first_step + index, self._micro_batches(index))
            result.append((loss, time.perf_counter() - begin))
        return result

    def close(self) -> None:
        """End the actors."""
        self._stages.kill()

    def _micro_batches(self, index: int) -> int:
        """Micro-batches of a batch of the epoch; the last batch may be smaller."""
        train = self._contest.config.train
        samples = min(train.batch_size, self._contest.plan.train_samples - index * train.batch_size)
        return -(-samples // train.micro_batch)

    def _train_step(self, step: int, micro_batches: int) -> float:
        stages = self._stages.handles
        last = len(stages) - 1
        waiting = [deque(one_forward_one_backward(s, len(stages), micro_batches)) for s in range(len(stages))]
        sent: dict[tuple[int, Work], Any] = {}
        goals: dict[int, Any] = {}
        metrics: list[Any] = []

        def submit(stage: int, work: Work) -> bool:
            """Call a stage if the reference that it needs is there."""
            index = work.micro_batch
            if work.way == "backward":
                if (gradients := sent.get((stage + 1, work))) is None:
                    return False
                sent[stage, work] = stages[stage].backward.remote(gradients)
                return True
            if stage == 0:
                sent[stage, work], goals[index] = stages[0].enter.remote(step, index)
                return True
            if (crossing := sent.get((stage - 1, work))) is None:
                return False
            if stage < last:
                sent[stage, work] = stages[stage].forward.remote(crossing, step, index)
            else:
                metric, gradients = stages[last].turn.remote(crossing, goals[index], step, index)
                metrics.append(metric)
                sent[last, Work("backward", index)] = gradients
            return True

        while any(waiting):
            for stage, works in enumerate(waiting):
                while works and submit(stage, works[0]):
                    works.popleft()
        stepped = [stage.step.remote() for stage in stages]
        timeout_s = self._contest.config.timeouts.step_s
        tally = Tally()
        for metric in metrics:
            tally.add(torch.tensor(answer(metric, f"Ray calls, step {step}", timeout_s)))
        for done in stepped:
            answer(done, f"Ray calls, step {step}", timeout_s)
        return tally.loss
