"""Image files as inputs of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from msl.data import Splits
from msl.errors import ConfigError


def read_image(path: Path, shape: tuple[int, ...], splits: Splits) -> torch.Tensor:
    """An image file as an input of the model, resized and normalised as the training set was.

    Args:
        path: any format that Pillow reads.
        shape: (channels, height, width) of the input; 1 or 3 channels.
        splits: the data set, whose normalisation is used.

    Returns:
        float32, of that shape.

    Raises:
        ConfigError: it is no image, or the model takes none.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ConfigError(
            f"{path}: the model's input has the shape {shape}; image files are for (1 or 3, height, width)"
        )
    if splits.normalise is None:
        raise ConfigError(f"{path}: the data set does not say how images are normalised (msl.data.Splits.normalise)")
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError("image files are read with Pillow: pip install pillow") from error
    channels, height, width = shape
    try:
        with Image.open(path) as image:
            converted = image.convert("L" if channels == 1 else "RGB").resize(
                (width, height), Image.Resampling.BILINEAR
            )
            pixels = np.asarray(converted, dtype=np.float32) / 255
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as an image: {error}") from error
    planes = torch.from_numpy(np.ascontiguousarray(pixels.reshape(height, width, channels).transpose(2, 0, 1)))
    return splits.normalise(planes).to(torch.float32)
