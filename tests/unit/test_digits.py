"""Claims about msl.data: the digits and the synthetic images."""

import sys

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from msl.data import Splits
from msl.data.digits import digits, stratified_split
from msl.data.synthetic import random_images
from msl.errors import ConfigError


def whole(part: Dataset[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    inputs, targets = next(iter(DataLoader(part, batch_size=10_000)))
    return inputs, targets


@pytest.fixture(scope="module")
def splits() -> Splits:
    return digits(size=16)


def test_every_digit_is_in_exactly_one_part(splits: Splits) -> None:
    images = torch.cat([whole(splits.train)[0], whole(splits.test)[0]])

    # No two of the 1,797 digits are equal, so distinct images are distinct examples.
    assert len(images) == len({image.numpy().tobytes() for image in images}) == 1797


def test_each_class_gives_a_fifth_of_its_images_to_the_test_part(
    splits: Splits,
) -> None:
    train = whole(splits.train)[1].bincount()
    test = whole(splits.test)[1].bincount()

    assert test.tolist() == [round(n * 0.2) for n in (train + test).tolist()]


def test_shapes_and_dtypes_are_those_of_a_grey_image_classifier() -> None:
    for part in (digits(size=20).train, digits(size=20).test):
        image, target = part[0]

        assert (image.shape, image.dtype) == ((1, 20, 20), torch.float32)
        assert (target.shape, target.dtype) == ((), torch.int64)


def test_training_images_have_zero_mean_and_unit_variance(splits: Splits) -> None:
    images, _ = whole(splits.train)

    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.var().item() == pytest.approx(1, abs=1e-5)


def test_normalisation_does_not_see_the_test_images(monkeypatch: pytest.MonkeyPatch, splits: Splits) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    _, test = stratified_split(torch.from_numpy(bunch.target), 0.2, seed=0)
    bunch.images[test.numpy()] = 16.0
    monkeypatch.setattr(datasets, "load_digits", lambda: bunch)

    spoilt = digits(size=16)

    assert torch.equal(whole(spoilt.train)[0], whole(splits.train)[0])
    assert not torch.equal(whole(spoilt.test)[0], whole(splits.test)[0])


def test_a_seed_fixes_the_split_and_another_changes_it(splits: Splits) -> None:
    again, other = digits(size=16), digits(size=16, seed=1)

    assert torch.equal(whole(splits.train)[0], whole(again.train)[0])
    assert torch.equal(whole(splits.test)[0], whole(again.test)[0])
    assert not torch.equal(whole(splits.test)[0], whole(other.test)[0])


def test_the_global_random_state_neither_matters_nor_changes() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()

    first = digits(size=8)

    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(whole(first.train)[0], whole(digits(size=8).train)[0])


def test_split_indices_partition_the_examples() -> None:
    targets = torch.tensor([0, 1, 2] * 10)

    train, test = stratified_split(targets, test_fraction=0.3, seed=0)

    assert torch.cat([train, test]).sort().values.tolist() == list(range(30))
    assert targets[test].bincount().tolist() == [3, 3, 3]


@pytest.mark.parametrize("fraction", [-0.5, 0.0, 0.001, 1.0, 2.0])
def test_a_fraction_that_empties_a_part_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match=f"test_fraction {fraction}"):
        digits(test_fraction=fraction)


def test_a_size_without_pixels_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 pixel, not 0"):
        digits(size=0)


def test_without_scikit_learn_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    with pytest.raises(ConfigError, match="pip install scikit-learn"):
        digits()


def test_random_images_have_the_asked_sizes_and_balanced_classes() -> None:
    splits = random_images(41, 8, (3, 12, 10), num_classes=4)
    images, targets = whole(splits.train)

    assert (images.shape, images.dtype) == ((41, 3, 12, 10), torch.float32)
    assert sorted(targets.bincount().tolist()) == [10, 10, 10, 11]
    assert whole(splits.test)[1].bincount().tolist() == [2, 2, 2, 2]
    assert targets.dtype == torch.int64


def test_random_images_depend_on_the_seed_alone() -> None:
    first = random_images(10, 4, (1, 8, 8), num_classes=2, seed=3)
    again = random_images(10, 9, (1, 8, 8), num_classes=2, seed=3)
    other = random_images(10, 4, (1, 8, 8), num_classes=2, seed=4)

    assert torch.equal(whole(first.train)[0], whole(again.train)[0])
    assert not torch.equal(whole(first.train)[0], whole(other.train)[0])


def test_random_images_can_be_told_apart_by_the_mean_of_their_class() -> None:
    splits = random_images(100, 50, (1, 16, 16), num_classes=5)
    images, targets = whole(splits.train)
    means = torch.stack([images[targets == c].mean(0) for c in range(5)])

    test_images, test_targets = whole(splits.test)
    distances = torch.cdist(test_images.flatten(1), means.flatten(1))

    assert distances.argmin(1).eq(test_targets).float().mean() > 0.95
