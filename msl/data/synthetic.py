"""Random images that a network can learn, for tests and benchmarks."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from msl.data import Splits

# The pattern of a class is this coarse, so that it survives strides and pooling.
_PATTERN_SIZE = 4


def random_images(
    num_train: int,
    num_test: int,
    shape: tuple[int, int, int],
    num_classes: int,
    seed: int = 0,
) -> Splits:
    """Float32 inputs of `shape` (C, H, W) and int64 scalar targets, fixed by `seed`.

    An image is the mean of its class, a coarse random pattern, plus white noise of
    the same variance. Class sizes differ by at most one in each part. The training
    part does not depend on `num_test`.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    patterns = torch.randn(num_classes, channels, _PATTERN_SIZE, _PATTERN_SIZE, generator=generator)

    def draw(num_images: int) -> TensorDataset:
        order = torch.randperm(num_images, generator=generator)
        targets: Tensor = order % num_classes
        means = F.interpolate(patterns[targets], size=(height, width))
        noise = torch.randn(num_images, *shape, generator=generator)
        return TensorDataset(means + noise, targets)

    return Splits(train=draw(num_train), test=draw(num_test))
