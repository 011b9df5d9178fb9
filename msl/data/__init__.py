"""The data sets a run trains on, each as a training and a test part."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Splits"]


@dataclass(frozen=True)
class Splits:
    """Two map-style data sets of (input, target) without a common example.

    An input is a float32 tensor without the batch dimension; a target is an int64
    scalar tensor, the index of the class.
    """

    train: Dataset[tuple[Tensor, ...]]
    test: Dataset[tuple[Tensor, ...]]
    classes: tuple[str, ...] = ()
    """Names of the classes; without them a class is shown by its index."""
    normalise: Callable[[Tensor], Tensor] | None = None
    """From a float32 image (channels, height, width) of 0 to 1 to an input of the model, as the training has seen
    them; without it, image files cannot be told from."""
