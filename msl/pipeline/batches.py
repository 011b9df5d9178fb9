"""The order in which samples are trained on: by seed and epoch alone, whatever the split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from msl.errors import ConfigError


@dataclass(frozen=True)
class MicroBatch:
    """A part of a batch: inputs (n, ...) of the model, and the target (n, ...)."""

    inputs: tuple[torch.Tensor, ...]
    target: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """The samples of one optimizer step, cut into micro-batches; the last one may be smaller."""

    samples: int
    micro_batches: tuple[MicroBatch, ...]


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Optimizer steps of one pass over `samples`."""
    return -(-samples // batch_size)


def size(dataset: Dataset[Any]) -> int:
    """Number of samples.

    Raises:
        ConfigError: the data set has no length, or is empty.
    """
    try:
        length = len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigError(f"data: a {type(dataset).__name__} has no length; map-style data sets are needed") from error
    if length < 1:
        raise ConfigError(f"data: the {type(dataset).__name__} is empty")
    return length


def _epoch_order(samples: int, seed: int, epoch: int) -> list[int]:
    """Indices of one epoch, shuffled by seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(samples, generator=generator).tolist()
    return order


def training_batches(
    dataset: Dataset[Any], batch_size: int, micro_batch: int, seed: int, epoch: int
) -> Iterator[Batch]:
    """The batches of one epoch in training order."""
    yield from _batches(dataset, _epoch_order(size(dataset), seed, epoch), batch_size, micro_batch)


def evaluation_batches(dataset: Dataset[Any], batch_size: int) -> Iterator[Batch]:
    """All samples in their own order, each batch as one micro-batch."""
    yield from _batches(dataset, list(range(size(dataset))), batch_size, batch_size)


def _batches(dataset: Dataset[Any], order: list[int], batch_size: int, micro_batch: int) -> Iterator[Batch]:
    for start in range(0, len(order), batch_size):
        inputs, target = _collate(dataset, order[start : start + batch_size])
        # Cloned, so that each begins at an aligned address, as it would if it had been received.
        pieces = zip(*([p.clone() for p in torch.split(t, micro_batch)] for t in (*inputs, target)), strict=True)
        yield Batch(len(target), tuple(MicroBatch(piece[:-1], piece[-1]) for piece in pieces))


def _collate(dataset: Dataset[Any], indices: list[int]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    collated = default_collate([dataset[index] for index in indices])
    if len(collated) != 2 or not isinstance(collated[1], torch.Tensor):
        raise ConfigError("data: a sample must be (input, target), or ((input, ...), target), of tensors or numbers")
    inputs, target = collated
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    return inputs, target


def sample_inputs(dataset: Dataset[Any], samples: int) -> tuple[torch.Tensor, ...]:
    """The inputs of the first samples, repeated if there are fewer; for tracing and measuring."""
    length = size(dataset)
    return _collate(dataset, [index % length for index in range(samples)])[0]
