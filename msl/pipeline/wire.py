"""Tensors to payload views and back, without a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from msl.errors import StageError
from msl.net.connection import Frame
from msl.net.frame import MAX_DIMS, DType, Layout, Role, TensorFlag, TensorSpec

_CODE = {
    torch.float32: DType.FLOAT32,
    torch.float64: DType.FLOAT64,
    torch.float16: DType.FLOAT16,
    torch.bfloat16: DType.BFLOAT16,
    torch.int8: DType.INT8,
    torch.uint8: DType.UINT8,
    torch.int16: DType.INT16,
    torch.int32: DType.INT32,
    torch.int64: DType.INT64,
    torch.bool: DType.BOOL,
}
_TORCH = {code: dtype for dtype, code in _CODE.items()}
ABSENT = TensorSpec(DType.FLOAT32, (0,), flags=TensorFlag.ABSENT)
_EMPTY = memoryview(b"")


def describe(
    tensor: torch.Tensor, role: Role = Role.SMASHED, flags: TensorFlag = TensorFlag(0)
) -> tuple[TensorSpec, memoryview]:
    """A tensor's descriptor, and a view of its bytes (copied only if it is not dense or not on the CPU).

    Raises:
        StageError: a dtype or a number of dimensions that the protocol does not know.
    """
    code = _CODE.get(tensor.dtype)
    if code is None or tensor.dim() > MAX_DIMS:
        raise StageError(f"a {tensor.dtype} tensor of {tensor.dim()} dimensions cannot cross a cut")
    tensor = tensor.detach().cpu()
    layout = Layout.ROW_MAJOR
    shape = tuple(tensor.shape)
    if tensor.is_contiguous():
        dense = tensor
    elif tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        layout = Layout.CHANNELS_LAST
        dense = tensor.permute(0, 2, 3, 1)
    else:
        dense = tensor.contiguous()
    spec = TensorSpec(code, shape, role, flags, layout)
    if not dense.numel():
        return spec, _EMPTY
    return spec, dense.reshape(-1).view(torch.uint8).numpy().data


def describe_all(
    tensors: Sequence[torch.Tensor | None], role: Role = Role.SMASHED
) -> tuple[list[TensorSpec], list[memoryview]]:
    """Descriptors and views of several tensors; None is described as absent."""
    specs, payloads = [], []
    for tensor in tensors:
        if tensor is None:
            spec, payload = ABSENT, _EMPTY
        else:
            flags = TensorFlag.WANTS_GRAD if tensor.requires_grad else TensorFlag(0)
            spec, payload = describe(tensor, role, flags)
        specs.append(spec)
        payloads.append(payload)
    return specs, payloads


def tensor_at(spec: TensorSpec, payload: memoryview) -> torch.Tensor:
    """A tensor over the bytes of a payload; it lives as long as the payload's buffer is not released."""
    dtype = _TORCH[spec.dtype]
    if not payload.nbytes:
        return torch.empty(spec.shape, dtype=dtype)
    flat = torch.frombuffer(payload, dtype=dtype)
    if spec.layout is Layout.CHANNELS_LAST:
        n, c, h, w = spec.shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)
    return flat.view(spec.shape)


def tensors_in(frame: Frame, role: Role) -> list[torch.Tensor | None]:
    """The tensors of a frame that have a role, in order; None where one is absent."""
    return [
        None if TensorFlag.ABSENT in spec.flags else tensor_at(spec, payload)
        for spec, payload in zip(frame.specs, frame.payloads, strict=True)
        if spec.role is role
    ]
