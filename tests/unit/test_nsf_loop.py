"""An NSF's loop between hand-made neighbours: what it passes on, what it refuses, and how it tells a failure."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import nn

from msl.errors import MslError, NetworkError
from msl.net.frame import DType, Flag, Header, Kind, Role, TensorFlag, TensorSpec
from msl.pipeline.fault import LONGEST_MESSAGE, Fault, FaultError
from msl.pipeline.link import Inbox
from msl.pipeline.nsf import NsfLoop
from msl.pipeline.stage import Stage
from msl.pipeline.wire import describe, tensors_in
from tests.unit.neighbours import IN_FLIGHT, LAST, ONE, PATIENCE_S, TENSOR, TRAIN, Build, Rig, link, make_stage


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
