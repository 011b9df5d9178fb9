"""The loop of an NSF and of the sink: receive, compute, send.

The loop is given its links and its stage; it knows neither the fabric nor Ray. One thread computes. It takes
backward passes before forward passes, which keeps few activations alive (one forward, one backward in turn),
and takes the micro-batches of each direction in order, so that sums of gradients do not depend on timing.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import deque
from collections.abc import Callable

import torch
from torch import nn

from msl.errors import MslError, ProtocolError, StageError
from msl.net.connection import Frame
from msl.net.frame import Flag, Header, Kind, Role, TensorSpec
from msl.pipeline.counters import Counters, StepRecord
from msl.pipeline.exchange import answered, append_metric, check_finite, leases_of, measure, pass_on, present
from msl.pipeline.fault import LONGEST_DETAIL, LONGEST_MESSAGE, Fault, FaultError, read_fault
from msl.pipeline.link import Inbox, Link
from msl.pipeline.stage import Stage
from msl.pipeline.wire import describe_all, tensors_in

FLUSH_S = 1.0
"""Time to get a last ERROR or END out before a connection is closed."""


class StageLoop:
    """What the loops of source, NSF and sink have in common: links, inbox, position, and how they fail.

    Args:
        name: the stage's name, e.g. `nsf1`.
        host: the host's name.
        inbox: into which both links put what arrives.
        previous: link to the previous hop; None at the source.
        following: link to the next hop; None at the sink.
        counters: where times are counted.
    """

    def __init__(
        self,
        name: str,
        host: str,
        inbox: Inbox,
        previous: Link | None,
        following: Link | None,
        counters: Counters | None = None,
    ) -> None:
        self.name = name
        self.host = host
        self.counters = counters or Counters()
        self.refused: Callable[[], int] = lambda: 0
        self._inbox = inbox
        self._previous = previous
        self._following = following
        self._forwards: deque[Frame] = deque()
        self._backwards: deque[Frame] = deque()

    @property
    def links(self) -> list[Link]:
        """The links that there are, previous first."""
        return [link for link in (self._previous, self._following) if link is not None]

    def fail(self, error: BaseException) -> Fault:
        """Tell the neighbours of an error, close the links, and say where it happened."""
        if isinstance(error, FaultError):
            fault = error.fault
        else:
            foreseen = isinstance(error, MslError)
            message = str(error) if foreseen else f"{type(error).__name__}: {error}"
            detail = "" if foreseen else "".join(traceback.format_exception(error))[-LONGEST_DETAIL:]
            fault = Fault(
                type(error).__name__,
                self.name,
                self.host,
                self.counters.step,
                self.counters.micro_batch,
                " ".join(message.split())[:LONGEST_MESSAGE],
                detail,
            )
        for link in self.links:
            with contextlib.suppress(ProtocolError):  # a full queue: the peer will see the connection close
                link.send_document(Header(Kind.ERROR), fault.document())
        self.close(FLUSH_S)
        return fault

    def close(self, flush_s: float = 0.0) -> None:
        """Close the links."""
        for link in self.links:
            link.close(flush_s)

    def _wait(self, timeout_s: float | None = None) -> None:
        """Wait for one arrival and sort it.

        The links' own deadlines end the wait with an error if a neighbour falls silent.

        Raises:
            queue.Empty: nothing came within `timeout_s`.
        """
        with self.counters.during("wait"):
            side, what = self._inbox.get(timeout=timeout_s)
        if isinstance(what, MslError):
            raise what
        if what.kind is Kind.ERROR:
            raise FaultError(read_fault(what.document))
        allowed = (
            (Kind.FORWARD, Kind.EPOCH, Kind.END)
            if side == "previous"
            else (Kind.BACKWARD, Kind.RESULT, Kind.EPOCH, Kind.END)
        )
        if what.kind not in allowed:
            raise ProtocolError(f"a {what.kind.name} frame from the {side} hop")
        (self._forwards if side == "previous" else self._backwards).append(what)

    def _at(self, header: Header) -> None:
        self.counters.step, self.counters.micro_batch = header.step, header.micro_batch

    def _record(self, step: int, **measured: float | int | None) -> None:
        forward_ms, backward_ms, wait_ms = self.counters.take_times()
        send_ms = sum(link.send_ms for link in self.links)
        for link in self.links:
            link.send_ms = 0.0
        hops = {}
        for link in self.links:
            traffic = link.connection.traffic
            hops[link.side] = (traffic.bytes_in, traffic.frames_in, traffic.bytes_out, traffic.frames_out)
        self.counters.records.append(
            StepRecord(step, forward_ms, backward_ms, wait_ms, send_ms, self.refused(), hops, **measured)  # type: ignore[arg-type]
        )


class _Relaying(StageLoop):
    """A loop that is driven by what the previous hop sends: an NSF's or the sink's."""

    stage: Stage

    def run(self) -> None:
        """Run until END; an exception is what `fail` is to be called with."""
        while True:
            if self._backwards:
                if self._take_backward(self._backwards.popleft()):
                    return
            elif self._forwards:
                if self._take_forward(self._forwards.popleft()):
                    return
            else:
                self._wait()

    def _take_forward(self, frame: Frame) -> bool:
        raise NotImplementedError

    def _take_backward(self, frame: Frame) -> bool:
        raise NotImplementedError

    def _inputs(self, frame: Frame) -> list[torch.Tensor]:
        """The smashed data of a FORWARD; in train mode they ask for gradients as the previous stage wishes."""
        inputs = present(tensors_in(frame, Role.SMASHED), frame.header)
        if Flag.TRAIN in frame.header.flags:
            smashed = (spec for spec in frame.specs if spec.role is Role.SMASHED)
            for tensor, spec in zip(inputs, smashed, strict=True):
                if spec.flags:
                    tensor.requires_grad_()
        return inputs


class NsfLoop(_Relaying):
    """The loop of an NSF: between two hops, with a stage that both directions pass."""

    def __init__(
        self,
        stage: Stage,
        name: str,
        host: str,
        inbox: Inbox,
        previous: Link,
        following: Link,
        counters: Counters | None = None,
    ) -> None:
        super().__init__(name, host, inbox, previous, following, counters)
        self.stage = stage
        self._prev = previous
        self._next = following
        self._waiting: deque[Frame] = deque()  # forwarded frames whose answer has not come back

    def _take_forward(self, frame: Frame) -> bool:
        header = frame.header
        if frame.kind is not Kind.FORWARD:
            self._next.send_document(Header(frame.kind, step=header.step))
            return False
        if self._step_is_open(header):
            # The next step's forward pass needs the weights after this step: put it back and wait.
            self._forwards.appendleft(frame)
            self._wait()
            return False
        self._at(header)
        train = Flag.TRAIN in header.flags
        inputs = self._inputs(frame)
        with self.counters.during("forward"):
            outputs = self.stage.forward(inputs, header.step, header.micro_batch) if train else self.stage.infer(inputs)
        specs, payloads = describe_all(outputs)
        pass_on(frame, Role.TARGET, specs, payloads)
        # In eval mode the payloads that pass unchanged lie in the frame's buffer until they are sent.
        release = [] if train or frame.lease is None else [frame.lease]
        self._next.send(header, specs, payloads, release)
        self._waiting.append(frame)
        return False

    def _step_is_open(self, header: Header) -> bool:
        return bool(self._waiting) and self._waiting[-1].header.step != header.step

    def _take_backward(self, frame: Frame) -> bool:
        header = frame.header
        if frame.kind is Kind.END:
            self._prev.send_document(Header(Kind.END))
            self.close(FLUSH_S)
            return True
        if frame.kind is Kind.EPOCH:
            self.stage.end_epoch()
            self._prev.send_document(Header(Kind.EPOCH, step=header.step))
            return False
        forward = answered(self._waiting, frame)
        self._at(header)
        specs: list[TensorSpec] = []
        payloads: list[memoryview] = []
        if frame.kind is Kind.BACKWARD:
            with self.counters.during("backward"):
                grads = self.stage.backward(tensors_in(frame, Role.SMASHED))
            specs, payloads = describe_all(grads)
        pass_on(frame, Role.METRIC, specs, payloads)
        if frame.kind is Kind.RESULT:
            pass_on(frame, Role.SMASHED, specs, payloads)
        leases = leases_of(frame, *([forward] if frame.kind is Kind.BACKWARD else []))
        self._prev.send(header, specs, payloads, leases)
        if Flag.STEP in forward.header.flags:
            self.stage.step()
            self._record(header.step, learning_rate=self.stage.learning_rate)
        return False


class SinkLoop(_Relaying):
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
        super().__init__(name, host, inbox, previous, None, counters)
        self.stage = stage
        self._prev = previous
        self._loss = loss.to(stage.device)

    def _take_backward(self, frame: Frame) -> bool:
        raise ProtocolError(f"a {frame.kind.name} frame beyond the end of the chain")

    def _take_forward(self, frame: Frame) -> bool:
        header = frame.header
        if frame.kind is Kind.END:
            self._prev.send_document(Header(Kind.END))
            self.close(FLUSH_S)
            return True
        if frame.kind is Kind.EPOCH:
            self.stage.end_epoch()
            self._prev.send_document(Header(Kind.EPOCH, step=header.step))
            return False
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
        self._prev.send(
            Header(Kind.BACKWARD, Flag(0), header.step, header.micro_batch), specs, payloads, leases_of(frame)
        )
        if Flag.STEP in header.flags:
            self.stage.step()
            self._record(header.step, learning_rate=self.stage.learning_rate)

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
