"""Hand-made neighbours: the other ends of a loop's links, driven by the test."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from msl.net.connection import Connection, Frame
from msl.net.frame import DType, Flag, Header, Kind, Role, TensorFlag, TensorSpec
from msl.pipeline.fault import Fault
from msl.pipeline.link import Inbox, Link
from msl.pipeline.loop import StageLoop
from msl.pipeline.stage import Stage
from msl.pipeline.wire import describe

MAX_BODY = 64 << 20
IN_FLIGHT = 2
PATIENCE_S = 20.0
"""Deadline of what is expected to happen; a busy machine may take its time."""
TRAIN, LAST = Flag.TRAIN, Flag.TRAIN | Flag.STEP
TENSOR = memoryview(bytes(16))
ONE = [TensorSpec(DType.FLOAT32, (1, 4), flags=TensorFlag.WANTS_GRAD)]
TARGET = TensorSpec(DType.INT64, (1,), Role.TARGET)


class Neighbour:
    """The other end of a loop's link, driven by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.connection = Connection(sock, "the loop", MAX_BODY, PATIENCE_S)

    def request(self, flags: Flag = TRAIN, step: int = 0, micro_batch: int = 0) -> None:
        """Send a FORWARD of one sample, (1, 4), with its target."""
        header = Header(Kind.FORWARD, flags, step, micro_batch, batch_samples=1)
        self.connection.send(header, [*ONE, TARGET], [TENSOR, memoryview(bytes(8))])

    def answer(self, kind: Kind = Kind.BACKWARD, step: int = 0, micro_batch: int = 0) -> None:
        """Send a BACKWARD of the gradient of one sample, (1, 4), with its METRIC."""
        metric, payload = describe(torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64), Role.METRIC)
        self.connection.send(Header(kind, Flag(0), step, micro_batch), [ONE[0], metric], [TENSOR, payload])

    def control(self, kind: Kind, document: dict[str, Any] | None = None) -> None:
        self.connection.send_document(Header(kind), document)

    def take(self) -> Frame:
        """The next frame that is no ping."""
        while (frame := self.connection.receive()).kind is Kind.PING:
            pass
        return frame

    def take_error(self) -> dict[str, Any]:
        while (frame := self.take()).kind is not Kind.ERROR:
            pass
        return dict(frame.document)


@dataclass
class Rig:
    """A loop that runs in a thread between two neighbours."""

    loop: StageLoop
    previous: Neighbour
    following: Neighbour
    fault: Fault | None = None
    errors: list[BaseException] = field(default_factory=list)
    thread: threading.Thread | None = None

    def start(self) -> None:
        def run() -> None:
            try:
                self.loop.run()  # type: ignore[attr-defined]
            except Exception as error:
                self.errors.append(error)
                self.fault = self.loop.fail(error)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def join(self) -> None:
        assert self.thread is not None
        self.thread.join(timeout=PATIENCE_S)
        assert not self.thread.is_alive()

    def ended_with(self) -> Fault:
        """The fault that the loop ends with."""
        self.join()
        assert self.fault is not None
        return self.fault


def make_stage(outputs: int = 4) -> Stage:
    torch.manual_seed(0)
    return Stage(nn.Linear(4, outputs), lambda parameters: torch.optim.SGD(parameters, lr=0.1))


Build = Callable[..., Rig]


def link(
    stack: contextlib.ExitStack, side: Any, inbox: Inbox, peer: str, silence_s: float, in_flight: int
) -> tuple[Neighbour, Link]:
    """A started link, and the neighbour at its other end."""
    ours, theirs = socket.socketpair()
    neighbour = Neighbour(theirs)
    made = Link(Connection(ours, peer, MAX_BODY, silence_s), side, inbox, in_flight, silence_s)
    made.start()
    stack.callback(neighbour.connection.close)
    return neighbour, made
