"""What the loops of source, NSF and sink share: links, inbox, order, and how they fail.

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

from msl.errors import MslError, ProtocolError
from msl.net.connection import Frame
from msl.net.frame import Flag, Header, Kind, Role
from msl.pipeline.counters import Counters, StepRecord
from msl.pipeline.exchange import present
from msl.pipeline.fault import LONGEST_DETAIL, LONGEST_MESSAGE, Fault, FaultError, read_fault
from msl.pipeline.link import Inbox, Link
from msl.pipeline.owed import Owed
from msl.pipeline.stage import Stage
from msl.pipeline.wire import tensors_in

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
        self.counters.steps_done = step + 1


class RelayLoop(StageLoop):
    """A loop that is driven by what the previous hop sends: an NSF's or the sink's."""

    def __init__(
        self,
        stage: Stage,
        name: str,
        host: str,
        inbox: Inbox,
        previous: Link,
        following: Link | None,
        counters: Counters | None = None,
    ) -> None:
        super().__init__(name, host, inbox, previous, following, counters)
        self.stage = stage
        self._prev = previous
        self._owed = Owed(stage, self.counters)
        self._ended: Header | None = None  # the step whose passes are all done, but not its optimizer step

    def run(self) -> None:
        """Run until END; an exception is what `fail` is to be called with."""
        while True:
            if self._ended is not None and (self._backwards or self._forwards):
                self._complete_step(self._ended)  # what has come belongs to what is after the step
            elif self._backwards:
                if self._take_backward(self._backwards.popleft()):
                    return
            elif self._forwards:
                if self._take_forward(self._forwards.popleft()):
                    return
            elif not self._inbox.empty() or not self._use_the_wait():
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

    def _turn_back(self, frame: Frame) -> bool:
        """An EPOCH or END on its way back to the source: take part in it, and pass it on; True at the end."""
        if frame.kind is Kind.EPOCH:
            self.stage.end_epoch()
        self._prev.send_document(Header(frame.kind, step=frame.header.step))
        if frame.kind is Kind.END:
            self.close(FLUSH_S)
        return frame.kind is Kind.END

    def _use_the_wait(self) -> bool:
        """Do a part of what the previous hop does not wait for; False if there is nothing."""
        if self._ended is None:
            return False
        if not self._owed.complete_one():
            self._complete_step(self._ended)
        return True

    def _complete_step(self, header: Header) -> None:
        """Optimizer step, after the backward pass of a step's last micro-batch."""
        self._owed.complete()
        self._ended = None
        self.stage.step()
        self._record(header.step, learning_rate=self.stage.learning_rate)
