"""The handwritten digits that come with scikit-learn, split and resized.

1,797 greyscale images of 8x8 pixels in ten classes: the test part of Alpaydin and
Kaynak, "Optical Recognition of Handwritten Digits" (UCI, 1998). They need no
download, so an example or a test trains on real images on a host without internet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from msl.data import Splits
from msl.errors import ConfigError

_BRIGHTEST = 16.0


def digits(size: int = 32, test_fraction: float = 0.2, seed: int = 0) -> Splits:
    """The digits as float32 (1, size, size) inputs and int64 scalar targets.

    Images are resized bilinearly and normalised with the mean and the variance of
    the training part, so nothing of the test part leaks into training. Each class
    gives `test_fraction` of its images to the test part; `seed` alone decides which.

    Raises ConfigError if `size` is below 1, if `test_fraction` would leave a part
    without some class, or if scikit-learn is not installed.
    """
    if size < 1:
        raise ConfigError(f"size must be at least 1 pixel, not {size}")
    images, targets = _load()
    train, test = stratified_split(targets, test_fraction, seed)
    inputs = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    std, mean = torch.std_mean(inputs[train], correction=0)
    inputs = (inputs - mean) / std
    return Splits(
        train=TensorDataset(inputs[train], targets[train]),
        test=TensorDataset(inputs[test], targets[test]),
        classes=tuple(map(str, range(10))),
        normalise=lambda image: (image * _BRIGHTEST - mean) / std,
    )


def stratified_split(targets: Tensor, test_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Training and test indices, ascending, with the classes in equal proportion.

    `targets` is int64 (N,); the indices are int64 and together are 0 to N - 1.
    Raises ConfigError if a part would be left without some class.
    """
    generator = torch.Generator().manual_seed(seed)
    train: list[Tensor] = []
    test: list[Tensor] = []
    for label in sorted(set(targets.tolist())):
        members = (targets == label).nonzero().squeeze(1)
        num_test = round(len(members) * test_fraction)
        if not 0 < num_test < len(members):
            raise ConfigError(
                f"test_fraction {test_fraction} gives {num_test} of the {len(members)} "
                f"images of class {label} to the test part; both parts need some"
            )
        shuffled = members[torch.randperm(len(members), generator=generator)]
        test.append(shuffled[:num_test])
        train.append(shuffled[num_test:])
    return torch.cat(train).sort().values, torch.cat(test).sort().values


def _load() -> tuple[Tensor, Tensor]:
    """All images, float32 (1797, 1, 8, 8) from 0 to 16, and targets, int64 (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("the data set 'digits' needs scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1)
    return images, torch.from_numpy(bunch.target).long()
