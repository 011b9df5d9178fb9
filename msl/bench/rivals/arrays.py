"""Tensors as numpy arrays, which Ray carries as they lie in memory and gives back without a copy.

A tensor itself is pickled into the message and out of it again, one copy more at each end: about 5% of ResNet-18's
round trip at batch 1. What is not contiguous, channels-last for instance, arrives contiguous.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msl.errors import ConfigError

Array = NDArray[Any]


def accept_received() -> None:
    """Silence torch about memory that is not writable: what was received is only read."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)


def as_arrays(tensors: Sequence[torch.Tensor]) -> list[Array]:
    """Tensors as arrays over the same memory.

    Raises:
        ConfigError: numpy has no such dtype.
    """
    return [_as_array(tensor) for tensor in tensors]


def as_tensors(arrays: Sequence[Array]) -> list[torch.Tensor]:
    """Arrays as tensors over the same memory."""
    return [torch.from_numpy(array) for array in arrays]


def _as_array(tensor: torch.Tensor) -> Array:
    try:
        return np.ascontiguousarray(tensor.detach().numpy())
    except TypeError as error:
        raise ConfigError(f"model: {tensor.dtype} cannot go through Ray as a numpy array") from error
