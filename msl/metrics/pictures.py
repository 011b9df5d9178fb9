"""Predictions as a picture: the images with their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msl.errors import ConfigError

_COLUMNS = 8
_INCH = 1.1
_DPI = 150
MOST = 64
"""Images of a picture."""


def draw(path: Path, images: Any, labels: Sequence[str], right: Sequence[bool | None]) -> None:
    """Write a PNG of images in rows of eight, wrong ones with a red label.

    Args:
        path: the file.
        images: array (n, channels, height, width), 1 or 3 channels, of any range.
        labels: one for each.
        right: whether each label is right; None if unknown.

    Raises:
        ConfigError: matplotlib is not installed, or these are no images.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("pictures are drawn with matplotlib: pip install matplotlib") from error
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(f"inputs of the shape {images.shape[1:]} cannot be shown as images")
    count = min(len(labels), MOST)
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(columns * _INCH, rows * (_INCH + 0.25)), dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for index, place in enumerate(axes):
        place.set_axis_off()
        if index < count:
            image = images[index].transpose(1, 2, 0)
            low, high = image.min(), image.max()
            place.imshow((image - low) / max(1e-9, high - low), cmap="gray")
            place.set_title(labels[index], fontsize=8, color="red" if right[index] is False else "black")
    figure.savefig(path)
