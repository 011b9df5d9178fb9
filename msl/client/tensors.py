"""What a client's arrays and torch tensors are in frames, and what a service's outputs are as arrays or tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msl.errors import ConfigError
from msl.net.arrays import array_at, describe
from msl.net.frame import DType, Layout, TensorSpec
from msl.plan import InputSpec

if TYPE_CHECKING:
    import torch

Described = tuple[TensorSpec, memoryview]
"""A tensor's descriptor and bytes."""


def described(inputs: Sequence[Any], wanted: Sequence[InputSpec], max_samples: int) -> list[Described]:
    """Descriptors and bytes of a request's inputs, if they are what the model takes."""
    if len(inputs) != len(wanted):
        raise ConfigError(f"{len(inputs)} inputs; the model has {len(wanted)}")
    tensors = []
    for index, (value, model) in enumerate(zip(inputs, wanted, strict=True)):
        if not isinstance(value, np.ndarray) and not is_torch(value):
            raise ConfigError(f"input {index} is a {type(value).__name__}; pass a numpy array or a torch tensor")
        dtype = value.dtype.name if isinstance(value, np.ndarray) else str(value.dtype).removeprefix("torch.")
        if dtype != model.dtype:
            hint = ", which numpy does not have: pass a torch tensor" if model.dtype == "bfloat16" else ""
            raise ConfigError(f"input {index} is of {dtype}; it must be of {model.dtype}{hint}")
        shape = tuple(value.shape)
        if not shape or shape[1:] != model.shape:
            expected = ", ".join(map(str, ("n", *model.shape)))
            raise ConfigError(f"input {index} has the shape {shape}; it must be ({expected})")
        if shape[0] != len(inputs[0]):
            raise ConfigError(f"input {index} has {shape[0]} samples, input 0 has {len(inputs[0])}")
        if not 1 <= shape[0] <= max_samples:
            raise ConfigError(f"{shape[0]} samples; the service takes 1 to {max_samples} in a request")
        tensors.append(describe(value) if isinstance(value, np.ndarray) else _describe_tensor(value))
    return tensors


def is_torch(value: Any) -> bool:
    """Whether it is a torch tensor; where there is one, torch is imported already."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _describe_tensor(tensor: torch.Tensor) -> Described:
    import torch

    tensor = tensor.detach().cpu()
    layout, dense = Layout.ROW_MAJOR, tensor
    if not tensor.is_contiguous() and tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        # As it is: some kernels round differently in the other layout.
        layout, dense = Layout.CHANNELS_LAST, tensor.permute(0, 2, 3, 1)
    spec = TensorSpec(DType[str(tensor.dtype).removeprefix("torch.").upper()], tuple(tensor.shape), layout=layout)
    return spec, dense.reshape(-1).view(torch.uint8).numpy().data


def _torch_at(spec: TensorSpec, payload: memoryview) -> torch.Tensor:
    import torch

    dtype = getattr(torch, spec.dtype.name.lower())
    flat = torch.frombuffer(payload, dtype=dtype).clone() if payload else torch.empty(0, dtype=dtype)
    if spec.layout is Layout.CHANNELS_LAST:
        n, c, h, w = spec.shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)
    return flat.view(spec.shape)


def output_at(spec: TensorSpec, payload: memoryview, as_torch: bool) -> Any:
    """An output in memory of its own: a torch tensor, or an array.

    Raises:
        ConfigError: numpy does not have its element type.
    """
    return _torch_at(spec, payload) if as_torch else array_at(spec, payload).copy()
