"""The loops against hand-made neighbours: what is not in the protocol ends them, and the fault says where."""

from __future__ import annotations

import contextlib
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from msl.errors import MslError, NetworkError, ProtocolError, StageError
from msl.net.connection import Connection, Frame
from msl.net.frame import DType, Flag, Header, Kind, Role, TensorFlag, TensorSpec, encode
from msl.pipeline.batches import Batch, MicroBatch
from msl.pipeline.fault import LONGEST_MESSAGE, Fault, FaultError
from msl.pipeline.link import _CONTROL_FRAMES, Inbox, Link
from msl.pipeline.loop import NsfLoop, SinkLoop, StageLoop
from msl.pipeline.source import SourceLoop
from msl.pipeline.stage import Stage
from msl.pipeline.wire import ABSENT, describe, tensors_in
from tests.chains import make_config, open_chain

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


@pytest.fixture
def nsf() -> Iterator[Build]:
    """Makes an NSF's loop that runs."""
    with contextlib.ExitStack() as stack:

        def build(stage: Stage | None = None, silence_s: float = PATIENCE_S, in_flight: int = IN_FLIGHT) -> Rig:
            inbox: Inbox = Inbox()
            previous, behind = link(stack, "previous", inbox, "source on host n0", silence_s, in_flight)
            following, ahead = link(stack, "next", inbox, "sink on host n2", silence_s, in_flight)
            rig = Rig(NsfLoop(stage or make_stage(), "nsf1", "n1", inbox, behind, ahead), previous, following)
            rig.start()
            stack.callback(rig.join)
            stack.callback(rig.loop.close)
            return rig

        yield build


@pytest.fixture
def sink() -> Iterator[Build]:
    """Makes a sink's loop that runs."""
    with contextlib.ExitStack() as stack:

        def build(stage: Stage | None = None) -> Rig:
            inbox: Inbox = Inbox()
            previous, behind = link(stack, "previous", inbox, "nsf1 on host n1", PATIENCE_S, IN_FLIGHT)
            loop = SinkLoop(stage or make_stage(3), nn.CrossEntropyLoss(), "sink", "n2", inbox, behind)
            rig = Rig(loop, previous, previous)
            rig.start()
            stack.callback(rig.join)
            stack.callback(rig.loop.close)
            return rig

        yield build


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


# What an NSF passes on, and in which order.


def test_micro_batches_go_down_and_their_gradients_come_back(nsf: Build) -> None:
    rig = nsf()
    rig.previous.request(TRAIN, 0, 0)
    rig.previous.request(LAST, 0, 1)
    down = [rig.following.take() for _ in range(2)]
    assert [(f.kind, f.header.flags, f.header.micro_batch, f.header.batch_samples) for f in down] == [
        (Kind.FORWARD, TRAIN, 0, 1),
        (Kind.FORWARD, LAST, 1, 1),
    ]
    assert [[spec.role for spec in frame.specs] for frame in down] == [[Role.SMASHED, Role.TARGET]] * 2
    assert [frame.specs[0].flags for frame in down] == [TensorFlag.WANTS_GRAD] * 2
    rig.following.answer(micro_batch=0)
    rig.following.answer(micro_batch=1)
    for index in range(2):
        frame = rig.previous.take()
        assert (frame.kind, frame.header.micro_batch) == (Kind.BACKWARD, index)
        (metric,) = tensors_in(frame, Role.METRIC)
        assert metric is not None
        assert metric.tolist() == [0.5, 1.0, 1.0]


def test_the_next_step_waits_for_the_optimizer_step(nsf: Build) -> None:
    stage = make_stage()
    before = stage.module.weight.detach().clone()
    rig = nsf(stage)
    rig.previous.request(LAST, step=0)
    rig.previous.request(TRAIN, step=1)
    assert rig.following.take().header.step == 0
    rig.following.connection.set_silence(0.3)
    with pytest.raises(NetworkError, match="nothing received"):
        rig.following.take()
    rig.following.connection.set_silence(PATIENCE_S)
    metric, payload = describe(torch.zeros(3, dtype=torch.float64), Role.METRIC)
    gradient, values = describe(torch.ones(1, 4))
    rig.following.connection.send(Header(Kind.BACKWARD), [gradient, metric], [values, payload])
    frame = rig.following.take()
    assert frame.header.step == 1
    # The inputs are zeros: the output is the bias, after the step of 0.1 times the gradient of ones.
    (output,) = tensors_in(frame, Role.SMASHED)
    assert output is not None
    assert torch.equal(output[0], stage.module.bias.detach())
    assert torch.equal(stage.module.weight.detach(), before)
    assert rig.loop.counters.records[0].step == 0


def test_an_evaluation_passes_without_a_backward_pass(nsf: Build) -> None:
    rig = nsf()
    rig.previous.request(Flag(0), step=5, micro_batch=3)
    assert rig.following.take().header.flags == Flag(0)
    rig.following.answer(Kind.RESULT, 5, 3)
    frame = rig.previous.take()
    assert (frame.kind, frame.header.step, frame.header.micro_batch) == (Kind.RESULT, 5, 3)
    assert rig.loop.stage.passes == 0  # type: ignore[attr-defined]


def test_epoch_and_end_go_to_the_sink_and_come_back(nsf: Build) -> None:
    rig = nsf()
    for kind in (Kind.EPOCH, Kind.END):
        rig.previous.control(kind)
        assert rig.following.take().kind is kind
        rig.following.control(kind)
        assert rig.previous.take().kind is kind
    rig.join()
    assert rig.fault is None
    with pytest.raises(NetworkError, match="closed the connection"):
        rig.previous.take()


def test_receive_buffers_do_not_pile_up_over_many_micro_batches(nsf: Build) -> None:
    rig = nsf()
    for step in range(50):
        rig.previous.request(LAST, step)
        rig.following.take().release()
        rig.following.answer(step=step)
        rig.previous.take().release()
    for one in rig.loop.links:
        assert one.connection.pool.allocated_bytes <= (IN_FLIGHT + 1) * 4096  # a frame of this test fits a page


# What is refused.


def test_more_micro_batches_than_the_window_are_refused(nsf: Build) -> None:
    rig = nsf()
    for index in range(IN_FLIGHT):
        rig.previous.request(micro_batch=index)
        rig.following.take()
    rig.following.answer(micro_batch=0)
    rig.previous.take()
    rig.previous.request(micro_batch=IN_FLIGHT)  # an answer makes room for one
    rig.following.take()
    rig.previous.request(micro_batch=IN_FLIGHT + 1)
    fault = rig.ended_with()
    assert (fault.kind, fault.message) == (
        "ProtocolError",
        "source on host n0 has more than 2 micro-batches in flight",
    )
    assert rig.previous.take_error() == rig.following.take_error() == fault.document()


@pytest.mark.parametrize("kind", [Kind.BACKWARD, Kind.RESULT, Kind.EPOCH, Kind.END])
def test_an_answer_that_answers_nothing_is_refused(nsf: Build, kind: Kind) -> None:
    rig = nsf()
    if kind in (Kind.BACKWARD, Kind.RESULT):
        rig.following.answer(kind)
    else:
        rig.following.control(kind)
    fault = rig.ended_with()
    assert fault.message == f"sink on host n2 sent a {kind.name} frame that answers nothing"
    assert rig.previous.take_error() == fault.document()


@pytest.mark.parametrize(
    ("kind", "step", "micro_batch"),
    [(Kind.BACKWARD, 4, 1), (Kind.BACKWARD, 3, 0), (Kind.RESULT, 4, 0)],
    ids=["another micro-batch", "another step", "another kind"],
)
def test_an_answer_to_another_request_than_the_oldest_is_refused(
    nsf: Build, kind: Kind, step: int, micro_batch: int
) -> None:
    rig = nsf()
    for index in range(2):
        rig.previous.request(step=4, micro_batch=index)
        rig.following.take()
    rig.following.answer(kind, step, micro_batch)
    fault = rig.ended_with()
    assert (fault.kind, fault.message) == (
        "ProtocolError",
        f"{kind.name} of step {step}, micro-batch {micro_batch} came back where BACKWARD of step 4, micro-batch 0 was"
        " due",
    )


@pytest.mark.parametrize("kind", [Kind.BACKWARD, Kind.RESULT, Kind.HELLO, Kind.WELCOME])
def test_the_previous_hop_sends_no_answers(nsf: Build, kind: Kind) -> None:
    rig = nsf()
    if kind in (Kind.BACKWARD, Kind.RESULT):
        rig.previous.answer(kind)
    else:
        rig.previous.control(kind)
    assert rig.ended_with().message == f"a {kind.name} frame from the previous hop"


@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.HELLO, Kind.WELCOME])
def test_the_next_hop_sends_no_requests(nsf: Build, kind: Kind) -> None:
    rig = nsf()
    rig.previous.request()
    rig.following.take()
    if kind is Kind.FORWARD:
        rig.following.request()
    else:
        rig.following.control(kind)
    assert rig.ended_with().message == f"a {kind.name} frame from the next hop"


@pytest.mark.parametrize(
    ("specs", "samples", "wording"),
    [
        (ONE, 1, "a FORWARD in train mode needs one target and the number of samples of its step"),
        ([*ONE, TARGET, TARGET], 1, "a FORWARD in train mode needs one target and the number of samples of its step"),
        ([*ONE, TARGET], 0, "a FORWARD in train mode needs one target and the number of samples of its step"),
        ([ABSENT, TARGET], 1, "an absent tensor in a FORWARD frame"),
    ],
    ids=["no target", "two targets", "no samples", "an absent input"],
)
def test_a_forward_that_the_sink_cannot_train_on_is_refused(
    sink: Build, specs: Sequence[TensorSpec], samples: int, wording: str
) -> None:
    rig = sink()
    payloads = [memoryview(bytes(spec.num_bytes)) for spec in specs]
    rig.previous.connection.send(Header(Kind.FORWARD, LAST, 0, 0, samples), specs, payloads)
    fault = rig.ended_with()
    assert (fault.kind, fault.stage, fault.message) == ("ProtocolError", "sink", wording)


@pytest.mark.parametrize(
    ("specs", "wording"),
    [
        ([], "0 gradients came back for 1 outputs"),
        ([ONE[0], ONE[0]], "2 gradients came back for 1 outputs"),
        (
            [TensorSpec(DType.FLOAT32, (4, 1))],
            "a gradient of shape (4, 1), torch.float32 came back for an output of shape (1, 4), torch.float32",
        ),
        (
            [TensorSpec(DType.INT32, (1, 4))],
            "a gradient of shape (1, 4), torch.int32 came back for an output of shape (1, 4), torch.float32",
        ),
    ],
)
def test_gradients_that_do_not_fit_the_outputs_are_refused(
    nsf: Build, specs: Sequence[TensorSpec], wording: str
) -> None:
    rig = nsf()
    rig.previous.request()
    rig.following.take()
    metric = TensorSpec(DType.FLOAT64, (3,), Role.METRIC)
    rig.following.connection.send(
        Header(Kind.BACKWARD), [*specs, metric], [TENSOR] * len(specs) + [memoryview(bytes(24))]
    )
    fault = rig.ended_with()
    assert (fault.kind, fault.message) == ("StageError", wording)


# How a failure is told.


@pytest.mark.parametrize("side", ["previous", "following"])
def test_an_error_from_one_side_reaches_the_other_unchanged(nsf: Build, side: str) -> None:
    rig = nsf()
    told = Fault("StageError", "nsf7", "n7", 12, 3, "out of memory").document()
    here, there = (rig.previous, rig.following) if side == "previous" else (rig.following, rig.previous)
    here.control(Kind.ERROR, told)
    assert there.take_error() == told
    fault = rig.ended_with()
    assert isinstance(rig.errors[0], FaultError)
    assert str(fault) == "host n7, stage nsf7, step 12, micro-batch 3: out of memory"


def test_an_error_without_fields_is_passed_on_as_well(nsf: Build) -> None:
    rig = nsf()
    rig.following.control(Kind.ERROR)
    assert rig.previous.take_error() == Fault("?", "?", "?", -1, -1, "?").document()
    rig.ended_with()


@pytest.mark.parametrize("side", ["previous", "following"])
def test_a_neighbour_that_closes_within_a_step_is_named_with_hop_and_step(nsf: Build, side: str) -> None:
    rig = nsf()
    rig.previous.request(step=7, micro_batch=2)
    rig.following.take()
    here, there = (rig.previous, rig.following) if side == "previous" else (rig.following, rig.previous)
    here.connection.close()
    peer = "source on host n0" if side == "previous" else "sink on host n2"
    fault = rig.ended_with()
    assert str(fault) == f"host n1, stage nsf1, step 7, micro-batch 2: {peer} closed the connection"
    assert there.take_error() == fault.document()


def test_garbage_from_a_neighbour_is_told_to_the_other(nsf: Build) -> None:
    rig = nsf()
    rig.following.connection._sock.sendall(b"HTTP/1.1 200 OK\r\n" * 3)
    fault = rig.ended_with()
    assert fault.kind == "ProtocolError"
    assert fault.message.startswith("not an msl peer")
    assert rig.previous.take_error() == fault.document()


def test_an_exception_of_the_model_is_told_in_one_line_that_fits_a_frame(nsf: Build) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no\nmemory " * 50_000)

    rig = nsf(Stage(Broken()))
    rig.previous.request(step=3)
    told = rig.previous.take_error()
    assert (told["kind"], told["stage"], told["step"]) == ("RuntimeError", "nsf1", 3)
    assert told["message"].startswith("RuntimeError: no memory no memory")
    assert len(told["message"]) == LONGEST_MESSAGE
    assert rig.following.take_error() == told


def test_a_loss_that_is_not_finite_is_told_with_its_stage_and_step(sink: Build) -> None:
    rig = sink()
    infinite = memoryview(torch.full((1, 4), math.inf).numpy()).cast("B")
    header = Header(Kind.FORWARD, LAST, 6, 1, 1)
    rig.previous.connection.send(header, [*ONE, TARGET], [infinite, memoryview(bytes(8))])
    fault = rig.ended_with()
    assert str(fault) == (
        "host n2, stage sink, step 6, micro-batch 1: the loss is nan; the training has diverged: lower the learning"
        " rate or check the data"
    )


def test_a_chain_that_diverges_stops_and_every_member_knows_why() -> None:
    config = make_config(
        model={"factory": "tests.unit.toys:Awkward", "args": {"dropout": 0.0}},
        data={
            "factory": "msl.data.synthetic:random_images",
            "args": {"num_train": 22, "num_test": 4, "shape": [1, 8, 8], "num_classes": 3, "seed": 3},
        },
        split={"cut": ["mix", "head"]},
        train={
            "epochs": 1,
            "batch_size": 8,
            "micro_batch": 4,
            "optimizer": {"factory": "torch.optim:SGD", "args": {"lr": 1e30}},
        },
    )
    with open_chain(config) as members:
        with pytest.raises(StageError) as caught:
            members[0].train_epoch(0, 0)
        assert "stage sink, step 1, micro-batch 0: the loss is nan; the training has diverged" in str(caught.value)
        faults = [member.wait(PATIENCE_S) for member in members]
        assert [str(fault) for fault in faults] == [str(caught.value)] * 3
        with pytest.raises(StageError, match="the training has diverged"):  # and it stays ended
            members[0].evaluate(1)


# Silence.


def test_a_neighbour_that_falls_silent_is_named_after_the_deadline(nsf: Build) -> None:
    start = time.monotonic()
    rig = nsf(silence_s=0.5)

    stop = threading.Event()

    def stay_alive() -> None:  # the previous hop lives: it is the next one that is named
        while not stop.wait(0.02):
            with contextlib.suppress(MslError):
                rig.previous.control(Kind.PING)

    thread = threading.Thread(target=stay_alive, daemon=True)
    thread.start()
    fault = rig.ended_with()
    stop.set()
    thread.join()
    assert fault.message == "nothing received from sink on host n2 for 0.5 s"
    assert 0.4 < time.monotonic() - start < 4


def test_a_live_neighbour_with_nothing_to_say_is_not_taken_for_dead() -> None:
    with contextlib.ExitStack() as stack:
        inbox: Inbox = Inbox()
        ours, theirs = socket.socketpair()
        links = [
            Link(Connection(sock, "peer", MAX_BODY, 0.8), side, inbox, IN_FLIGHT, 0.8)  # type: ignore[arg-type]
            for sock, side in ((ours, "next"), (theirs, "previous"))
        ]
        for one in links:
            one.start()
            stack.callback(one.close)
        with pytest.raises(queue.Empty):
            inbox.get(timeout=1.7)
        assert links[0].connection.traffic.frames_in >= 4


def test_a_neighbour_that_takes_nothing_is_named_after_the_deadline() -> None:
    with contextlib.ExitStack() as stack:
        inbox: Inbox = Inbox()
        neighbour, ours = link(stack, "next", inbox, "sink on host n2", 0.4, IN_FLIGHT)
        stack.callback(ours.close)
        spec = TensorSpec(DType.UINT8, (8 << 20,))
        ours.send(Header(Kind.FORWARD), [spec], [memoryview(bytes(8 << 20))])
        stop = threading.Event()

        def ping() -> None:
            while not stop.wait(0.02):
                neighbour.control(Kind.PING)

        thread = threading.Thread(target=ping, daemon=True)
        thread.start()
        what = inbox.get(timeout=PATIENCE_S).what
        stop.set()
        thread.join()
        assert isinstance(what, NetworkError)
        assert str(what) == "nothing taken by sink on host n2 for 0.4 s"


def test_what_a_failed_neighbour_said_last_is_heard_before_that_it_is_gone() -> None:
    spec, payload = TensorSpec(DType.UINT8, (8 << 20,)), memoryview(bytes(8 << 20))
    for _ in range(10):
        with contextlib.ExitStack() as stack:
            inbox: Inbox = Inbox()
            with socket.create_server(("127.0.0.1", 0)) as listener:
                near = socket.create_connection(listener.getsockname())
                far, _ = listener.accept()
            ours = Link(Connection(near, "sink on host n2", MAX_BODY, PATIENCE_S), "next", inbox, IN_FLIGHT, PATIENCE_S)
            ours.start()
            stack.callback(ours.close)
            ours.send(Header(Kind.FORWARD), [spec], [payload])  # more than the socket takes: it is being sent
            neighbour = Neighbour(far)
            far.recv(1)
            neighbour.control(Kind.ERROR, {"message": "the loss is nan"})
            neighbour.connection.close()  # with unread bytes: this resets the connection
            first = inbox.get(timeout=PATIENCE_S).what
            assert isinstance(first, Frame)
            assert first.document == {"message": "the loss is nan"}


# Memory.


def test_a_neighbour_that_does_not_read_cannot_make_the_queue_grow() -> None:
    with contextlib.ExitStack() as stack:
        inbox: Inbox = Inbox()
        _, ours = link(stack, "previous", inbox, "source on host n0", PATIENCE_S, IN_FLIGHT)
        stack.callback(ours.close)
        spec, payload = TensorSpec(DType.UINT8, (1 << 20,)), memoryview(bytes(1 << 20))
        queued = 0

        def fill() -> None:
            nonlocal queued
            for _ in range(1000):
                ours.send(Header(Kind.RESULT), [spec], [payload])
                queued += 1

        with pytest.raises(ProtocolError, match="more frames queued for source on host n0 than are allowed in flight"):
            fill()
        assert queued <= IN_FLIGHT + _CONTROL_FRAMES + 3


@pytest.mark.parametrize("side", ["previous", "next"])
@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.BACKWARD, Kind.RESULT])
def test_a_neighbour_cannot_fill_the_inbox_faster_than_it_is_emptied(side: str, kind: Kind) -> None:
    """Nobody reads the inbox here, as while a stage computes."""
    size = 100_000
    raw = b"".join(encode(Header(kind), [TensorSpec(DType.UINT8, (size,))], [memoryview(bytes(size))]))
    with contextlib.ExitStack() as stack:
        inbox: Inbox = Inbox()
        neighbour, ours = link(stack, side, inbox, "a flood", PATIENCE_S, IN_FLIGHT)
        stack.callback(ours.close)
        thread = threading.Thread(target=_flood, args=(neighbour.connection._sock, raw * 50), daemon=True)
        thread.start()
        deadline = time.monotonic() + PATIENCE_S
        while ours._threads[0].is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        arrivals = [inbox.get_nowait().what for _ in range(inbox.qsize())]
        assert len(arrivals) == (IN_FLIGHT if side == "previous" else 0) + 1
        assert isinstance(arrivals[-1], ProtocolError)
        assert ours.connection.pool.allocated_bytes <= (IN_FLIGHT + 1) * (1 << 17)
        ours.close()
        thread.join(timeout=PATIENCE_S)
        assert not thread.is_alive()


def _flood(sock: socket.socket, raw: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(raw)


@pytest.mark.parametrize("kind", [Kind.EPOCH, Kind.END])
def test_a_flood_of_requests_without_tensors_is_refused_too(kind: Kind) -> None:
    with contextlib.ExitStack() as stack:
        inbox: Inbox = Inbox()
        neighbour, ours = link(stack, "previous", inbox, "a flood", PATIENCE_S, IN_FLIGHT)
        stack.callback(ours.close)
        for _ in range(50):
            neighbour.control(kind)
        deadline = time.monotonic() + PATIENCE_S
        while ours._threads[0].is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert inbox.qsize() == IN_FLIGHT + 1


# The source.


@pytest.fixture
def source() -> Iterator[Callable[..., tuple[SourceLoop, Neighbour]]]:
    """Makes a source without a stage, and the hop behind it."""
    with contextlib.ExitStack() as stack:

        def build(step_s: float = PATIENCE_S) -> tuple[SourceLoop, Neighbour]:
            inbox: Inbox = Inbox()
            neighbour, ahead = link(stack, "next", inbox, "nsf1 on host n1", PATIENCE_S, IN_FLIGHT)
            loop = SourceLoop(None, "source", "n0", inbox, ahead, IN_FLIGHT, step_s)
            stack.callback(loop.close)
            return loop, neighbour

        yield build


def batch(micro_batches: int) -> Batch:
    parts = tuple(MicroBatch((torch.zeros(1, 4),), torch.zeros(1, dtype=torch.long)) for _ in range(micro_batches))
    return Batch(micro_batches, parts)


@contextlib.contextmanager
def serving(serve: Callable[[], None]) -> Iterator[None]:
    """The hop behind the source, in a thread that must end."""
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    thread.join(timeout=PATIENCE_S)
    assert not thread.is_alive()


def test_the_source_keeps_to_the_window(source: Any) -> None:
    loop, hop = source()

    def serve() -> None:
        taken = 0
        for answered in range(5):
            while taken < min(5, answered + IN_FLIGHT):
                assert hop.take().header.micro_batch == taken
                taken += 1
            hop.connection.set_silence(0.1)
            with pytest.raises(NetworkError, match="nothing received"):
                hop.take()
            hop.connection.set_silence(PATIENCE_S)
            hop.answer(micro_batch=answered)

    with serving(serve):
        tally = loop.train_step(batch(5), 0)
    assert (tally.samples, tally.loss, tally.accuracy) == (5, 0.5, 1.0)


@pytest.mark.parametrize("metrics", [0, 2])
def test_an_answer_without_exactly_one_metric_is_refused(source: Any, metrics: int) -> None:
    loop, hop = source()
    specs = [*ONE, *[TensorSpec(DType.FLOAT64, (3,), Role.METRIC)] * metrics]

    def serve() -> None:
        assert hop.take().kind is Kind.FORWARD
        hop.connection.send(Header(Kind.BACKWARD), specs, [memoryview(bytes(spec.num_bytes)) for spec in specs])

    with serving(serve), pytest.raises(ProtocolError, match=r"^an answer without its METRIC tensor$"):
        loop.train_step(batch(1), 0)


def test_a_chain_that_pings_but_does_not_answer_is_told_as_stuck(source: Any) -> None:
    loop, _ = source(step_s=0.3)
    with pytest.raises(NetworkError) as caught:
        loop.train_step(batch(1), 0)
    assert str(caught.value) == (
        "no answer from the chain behind nsf1 on host n1 within 0.3 s (timeouts.step_s), though it sends pings"
    )


def test_an_end_of_epoch_that_is_answered_otherwise_is_refused(source: Any) -> None:
    loop, hop = source()

    def serve() -> None:
        assert hop.take().kind is Kind.EPOCH
        hop.control(Kind.END)

    with serving(serve), pytest.raises(ProtocolError, match=r"^a END frame came back where EPOCH was due$"):
        loop.train_epoch([], 0)
