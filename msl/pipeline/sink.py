"""The loop of the sink: last stage, loss, and the turn from forward to backward."""

from __future__ import annotations

import torch
from torch import nn

from msl.errors import ProtocolError, StageError
from msl.net.connection import Frame
from msl.net.frame import Flag, Header, Kind, Role, TensorSpec
from msl.pipeline.counters import Counters
from msl.pipeline.exchange import append_metric, check_finite, leases_of, measure, present
from msl.pipeline.link import Inbox, Link
from msl.pipeline.loop import RelayLoop
from msl.pipeline.stage import Stage
from msl.pipeline.wire import describe_all, tensors_in


class SinkLoop(RelayLoop):
    """The loop of the sink: last stage, loss, and the turn from forward to backward.

    Args:
        loss: averages over the samples of a micro-batch.
    """

    def __init__(
        self,
        stage: Stage,
        loss: nn.Module,
        name: str,
        host: str,
        inbox: Inbox,
        previous: Link,
        counters: Counters | None = None,
    ) -> None:
        super().__init__(stage, name, host, inbox, previous, None, counters)
        self._loss = loss.to(stage.device)

    def _take_backward(self, frame: Frame) -> bool:
        raise ProtocolError(f"a {frame.kind.name} frame beyond the end of the chain")

    def _take_forward(self, frame: Frame) -> bool:
        header = frame.header
        if frame.kind in (Kind.END, Kind.EPOCH):
            return self._turn_back(frame)
        self._at(header)
        inputs = self._inputs(frame)
        targets = present(tensors_in(frame, Role.TARGET), header)
        if Flag.TRAIN in header.flags:
            self._train(frame, inputs, targets)
        else:
            self._evaluate(frame, inputs, targets)
        return False

    def _train(self, frame: Frame, inputs: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
        header = frame.header
        if len(targets) != 1 or header.batch_samples < 1:
            raise ProtocolError("a FORWARD in train mode needs one target and the number of samples of its step")
        with self.counters.during("forward"):
            outputs = self.stage.forward(inputs, header.step, header.micro_batch)
            if len(outputs) != 1:
                raise StageError(f"the model returns {len(outputs)} tensors; the loss takes one")
            target = targets[0].to(self.stage.device)
            loss = self._loss(outputs[0], target)
            samples = len(target)
            metric = measure(loss, outputs[0], target)
        check_finite(metric)
        with self.counters.during("backward"):
            wanting = [t for t in outputs if t.requires_grad]
            scaled = loss * (samples / header.batch_samples)
            grads = self.stage.backward(torch.autograd.grad(scaled, wanting) if wanting else [])
        specs, payloads = describe_all(grads)
        append_metric(metric, specs, payloads)
        leases = leases_of(frame)
        self._owed.hold(leases)
        self._prev.send(Header(Kind.BACKWARD, Flag(0), header.step, header.micro_batch), specs, payloads, leases)
        self._owed.limit()
        if Flag.STEP in header.flags:
            self._ended = header

    def _evaluate(self, frame: Frame, inputs: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
        header = frame.header
        with self.counters.during("forward"):
            outputs = self.stage.infer(inputs)
        specs: list[TensorSpec] = []
        payloads: list[memoryview] = []
        if targets:
            target = targets[0].to(self.stage.device)
            metric = measure(self._loss(outputs[0], target), outputs[0], target)
            append_metric(metric, specs, payloads)
        else:
            specs, payloads = describe_all(outputs)
        self._prev.send(
            Header(Kind.RESULT, Flag(0), header.step, header.micro_batch), specs, payloads, leases_of(frame)
        )
