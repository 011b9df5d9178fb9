"""What the loops do with frames: answer, pass on, measure."""

from __future__ import annotations

import math
from collections import deque

import torch

from msl.errors import ProtocolError, StageError
from msl.net.buffers import Lease
from msl.net.connection import Frame
from msl.net.frame import Flag, Header, Kind, Role, TensorSpec
from msl.pipeline.wire import describe


def measure(loss: torch.Tensor, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The METRIC tensor of a micro-batch: float64 [mean loss, correct answers, samples].

    Correct answers are counted for classification, (N, classes) outputs with (N,) integer targets; NaN else.
    """
    correct = math.nan
    if output.dim() == 2 and target.dim() == 1 and not target.is_floating_point():
        correct = float((output.argmax(1) == target).sum())
    return torch.tensor([float(loss.detach()), correct, len(target)], dtype=torch.float64)


def check_finite(metric: torch.Tensor) -> None:
    """Refuse a loss that is NaN or infinite."""
    loss = float(metric[0])
    if not math.isfinite(loss):
        raise StageError(f"the loss is {loss}; the training has diverged: lower the learning rate or check the data")


def append_metric(metric: torch.Tensor, specs: list[TensorSpec], payloads: list[memoryview]) -> None:
    """Append the METRIC tensor to a frame in the making."""
    spec, payload = describe(metric, Role.METRIC)
    specs.append(spec)
    payloads.append(payload)


def pass_on(frame: Frame, role: Role, specs: list[TensorSpec], payloads: list[memoryview]) -> None:
    """Append the tensors that are not for this stage, as they came."""
    for spec, payload in zip(frame.specs, frame.payloads, strict=True):
        if spec.role is role:
            specs.append(spec)
            payloads.append(payload)


def present(tensors: list[torch.Tensor | None], header: Header) -> list[torch.Tensor]:
    """All of the tensors, none of which may be absent."""
    present = [tensor for tensor in tensors if tensor is not None]
    if len(present) != len(tensors):
        raise ProtocolError(f"an absent tensor in a {header.kind.name} frame")
    return present


def answered(waiting: deque[Frame], answer: Frame) -> Frame:
    """The oldest forwarded frame, which `answer` must be for."""
    if not waiting:
        raise ProtocolError(f"a {answer.kind.name} frame that answers nothing")
    forward = waiting.popleft()
    expected = Kind.BACKWARD if Flag.TRAIN in forward.header.flags else Kind.RESULT
    want, got = forward.header, answer.header
    if (got.kind, got.step, got.micro_batch) != (expected, want.step, want.micro_batch):
        raise ProtocolError(
            f"{got.kind.name} of step {got.step}, micro-batch {got.micro_batch} came back where {expected.name}"
            f" of step {want.step}, micro-batch {want.micro_batch} was due"
        )
    return forward


def leases_of(*frames: Frame) -> list[Lease]:
    """The receive buffers of frames, to be released once an answer is sent."""
    return [frame.lease for frame in frames if frame.lease is not None]
