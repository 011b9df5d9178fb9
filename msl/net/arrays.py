"""numpy arrays to payload views and back, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np

from msl.errors import ConfigError
from msl.net.frame import DType, Layout, TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]


def describe(array: Array) -> tuple[TensorSpec, memoryview]:
    """An array's descriptor, and a view of its bytes (copied only if they do not lie in order, or are big-endian).

    Raises:
        ConfigError: an element type that the protocol does not know.
    """
    code = DType.__members__.get(array.dtype.name.upper())
    if code is None:
        raise ConfigError(f"an array of {array.dtype.name} cannot be sent")
    dense = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return TensorSpec(code, array.shape), dense.reshape(-1).view(np.uint8).data


def array_at(spec: TensorSpec, payload: memoryview) -> Array:
    """An array over the bytes of a payload; it lives as long as the payload's buffer is not released.

    Raises:
        ConfigError: bfloat16, which numpy does not have.
    """
    if spec.dtype is DType.BFLOAT16:
        raise ConfigError("a tensor of bfloat16, which numpy does not have")
    flat = np.frombuffer(payload, np.dtype(spec.dtype.name.lower()).newbyteorder("<"))
    if spec.layout is Layout.CHANNELS_LAST:
        n, c, h, w = spec.shape
        return flat.reshape(n, h, w, c).transpose(0, 3, 1, 2)
    return flat.reshape(spec.shape)
