"""The source: owns the data, drives the chain, and holds stage 0 if it lives there."""

from __future__ import annotations

import math
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from msl.errors import NetworkError, ProtocolError
from msl.net.connection import Frame
from msl.net.frame import Flag, Header, Kind, Role
from msl.pipeline.batches import Batch
from msl.pipeline.counters import Counters
from msl.pipeline.exchange import answered, leases_of
from msl.pipeline.link import Inbox, Link
from msl.pipeline.loop import FLUSH_S, StageLoop
from msl.pipeline.owed import Owed
from msl.pipeline.stage import Stage
from msl.pipeline.wire import describe_all, tensors_in


@dataclass
class Tally:
    """Loss and accuracy over micro-batches."""

    samples: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0

    def add(self, metric: torch.Tensor) -> None:
        """Add a METRIC tensor: float64 [mean loss, correct answers, samples]."""
        loss, correct, samples = metric.tolist()
        self.samples += int(samples)
        self.loss_sum += loss * samples
        self.correct += correct

    def merge(self, other: Tally) -> None:
        """Add what another one counted."""
        self.samples += other.samples
        self.loss_sum += other.loss_sum
        self.correct += other.correct

    @property
    def loss(self) -> float:
        """Mean loss of a sample."""
        return self.loss_sum / self.samples if self.samples else math.nan

    @property
    def accuracy(self) -> float | None:
        """Share of correct answers; None where answers are not classes."""
        return None if math.isnan(self.correct) or not self.samples else self.correct / self.samples


class SourceLoop(StageLoop):
    """Sends micro-batches down the chain and takes their answers back, in order.

    Args:
        stage: stage 0, or None if the raw inputs are sent.
        in_flight: most micro-batches under way at once.
        step_s: longest wait for the answer to a micro-batch, in seconds.
    """

    def __init__(
        self,
        stage: Stage | None,
        name: str,
        host: str,
        inbox: Inbox,
        following: Link,
        in_flight: int,
        step_s: float,
        counters: Counters | None = None,
    ) -> None:
        super().__init__(name, host, inbox, None, following, counters)
        self.stage = stage
        self._next = following
        self._in_flight = in_flight
        self._step_s = step_s
        self._waiting: deque[Frame] = deque()
        self._owed = Owed(stage, self.counters) if stage is not None else None
        self._draining = False  # all of a step is sent: there is nothing else to do than what is owed
        self.between_steps: Callable[[int], None] = lambda _step: None
        """Called when a step is complete, with the number of the next one; it may call `infer`."""

    def train_step(self, batch: Batch, step: int) -> Tally:
        """Forward and backward of a batch's micro-batches, then the optimizer step, over the whole chain."""
        start = time.perf_counter()
        tally = Tally()
        last = len(batch.micro_batches) - 1
        for index, micro_batch in enumerate(batch.micro_batches):
            if len(self._waiting) >= self._in_flight:
                self._take_answer(tally)
            flags = Flag.TRAIN | Flag.STEP if index == last else Flag.TRAIN
            self._send(Header(Kind.FORWARD, flags, step, index, batch.samples), micro_batch.inputs, micro_batch.target)
        self._draining = True
        while self._waiting:
            self._take_answer(tally)
        self._draining = False
        if self.stage is not None and self._owed is not None:
            self._owed.complete()
            self.stage.step()
        self._record(
            step,
            learning_rate=self.stage.learning_rate if self.stage else None,
            loss=tally.loss,
            accuracy=tally.accuracy,
            samples=tally.samples,
            wall_ms=(time.perf_counter() - start) * 1e3,
        )
        return tally

    def train_epoch(self, batches: Iterable[Batch], first_step: int) -> Tally:
        """Train on all batches, then let every stage end the epoch."""
        tally = Tally()
        step = first_step
        for batch in batches:
            tally.merge(self.train_step(batch, step))
            step += 1
            self.between_steps(step)
        if self.stage is not None:
            self.stage.end_epoch()
        self._next.send_document(Header(Kind.EPOCH, step=step))
        self._take(Kind.EPOCH)
        return tally

    def evaluate(self, batches: Iterable[Batch], step: int) -> Tally:
        """Loss and accuracy in eval mode; nothing is learnt."""
        tally = Tally()
        index = 0
        for batch in batches:
            for micro_batch in batch.micro_batches:
                if len(self._waiting) >= self._in_flight:
                    self._take_answer(tally)
                self._send(
                    Header(Kind.FORWARD, Flag(0), step, index, batch.samples), micro_batch.inputs, micro_batch.target
                )
                index += 1
        while self._waiting:
            self._take_answer(tally)
        self.counters.take_times()
        return tally

    def infer(self, batches: Sequence[Sequence[torch.Tensor]], step: int) -> list[list[torch.Tensor]]:
        """Outputs of the last stage in eval mode, for inputs of the model; nothing is learnt.

        Args:
            batches: inputs of the model, (n, ...) each; each batch travels by itself.
            step: number of the next training step.

        Returns:
            The outputs of each batch, in memory of their own.
        """
        outputs: list[list[torch.Tensor]] = []
        for index, inputs in enumerate(batches):
            if len(self._waiting) >= self._in_flight:
                outputs.append(self._take_outputs())
            self._send(Header(Kind.FORWARD, Flag(0), step, index, len(inputs[0])), inputs)
        while self._waiting:
            outputs.append(self._take_outputs())
        self.counters.take_times()
        return outputs

    def end(self) -> None:
        """End the chain in order: END goes to the sink and comes back."""
        self._next.send_document(Header(Kind.END))
        self._take(Kind.END)
        self.close(FLUSH_S)

    def _send(self, header: Header, inputs: Sequence[torch.Tensor], target: torch.Tensor | None = None) -> None:
        self._at(header)
        tensors: list[torch.Tensor] = list(inputs)
        if self.stage is not None:
            with self.counters.during("forward"):
                if Flag.TRAIN in header.flags:
                    tensors = self.stage.forward(tensors, header.step, header.micro_batch)
                else:
                    tensors = self.stage.infer(tensors)
        specs, payloads = describe_all(tensors)
        target_specs, target_payloads = describe_all([] if target is None else [target], Role.TARGET)
        self._next.send(header, specs + target_specs, payloads + target_payloads)
        self._waiting.append(Frame(header))

    def _take_answer(self, tally: Tally) -> None:
        answer = self._arrival()
        header = answered(self._waiting, answer).header
        self._at(header)
        metrics = [metric for metric in tensors_in(answer, Role.METRIC) if metric is not None]
        if len(metrics) != 1 or metrics[0].shape != (3,):
            raise ProtocolError("an answer without its METRIC tensor")
        tally.add(metrics[0])
        if answer.kind is Kind.BACKWARD and self.stage is not None and self._owed is not None:
            with self.counters.during("backward"):
                self.stage.backward(tensors_in(answer, Role.SMASHED))
            self._owed.hold(leases_of(answer))
            self._owed.limit()
        answer.release()

    def _take_outputs(self) -> list[torch.Tensor]:
        answer = self._arrival()
        self._at(answered(self._waiting, answer).header)
        outputs = [tensor.clone() for tensor in tensors_in(answer, Role.SMASHED) if tensor is not None]
        answer.release()
        return outputs

    def _take(self, kind: Kind) -> None:
        answer = self._arrival()
        if answer.kind is not kind:
            raise ProtocolError(f"a {answer.kind.name} frame came back where {kind.name} was due")

    def _arrival(self) -> Frame:
        deadline = time.monotonic() + self._step_s
        while not self._backwards:
            if self._draining and self._inbox.empty() and self._owed is not None and self._owed.complete_one():
                continue
            try:
                self._wait(max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise NetworkError(
                    f"no answer from the chain behind {self._next.connection.peer} within {self._step_s:g} s"
                    " (timeouts.step_s), though it sends pings"
                ) from None
        return self._backwards.popleft()
