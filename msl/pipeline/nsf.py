"""The loop of an NSF: receive, apply the stage, send on, in both directions."""

from __future__ import annotations

from collections import deque

from msl.net.connection import Frame
from msl.net.frame import Flag, Header, Kind, Role, TensorSpec
from msl.pipeline.counters import Counters
from msl.pipeline.exchange import answered, leases_of, pass_on
from msl.pipeline.link import Inbox, Link
from msl.pipeline.loop import RelayLoop
from msl.pipeline.stage import Stage
from msl.pipeline.wire import describe_all, tensors_in


class NsfLoop(RelayLoop):
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
        super().__init__(stage, name, host, inbox, previous, following, counters)
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
        if frame.kind in (Kind.END, Kind.EPOCH):
            return self._turn_back(frame)
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
        if frame.kind is Kind.BACKWARD:
            self._owed.hold(leases)
        self._prev.send(header, specs, payloads, leases)
        self._owed.limit()
        if Flag.STEP in forward.header.flags:
            self._ended = header
        return False
