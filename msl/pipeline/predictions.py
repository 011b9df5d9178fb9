"""Samples to ask a service about, and what it answers: classes, probabilities, latencies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch.utils.data import default_collate

from msl.client import Client
from msl.config import Config
from msl.data.images import read_image
from msl.errors import ConfigError
from msl.net.trace import Trace
from msl.pipeline.batches import size
from msl.pipeline.build import build_data


@dataclass(frozen=True)
class Question:
    """Samples to be classified."""

    names: tuple[str, ...]
    inputs: tuple[torch.Tensor, ...]
    """The model's inputs, (n, ...) each."""
    targets: torch.Tensor | None
    """int64 (n,), where the right answers are known."""
    classes: tuple[str, ...]

    def class_name(self, index: int) -> str:
        """How a class is called."""
        return self.classes[index] if index < len(self.classes) else str(index)


@dataclass
class Reply:
    """What a service answered."""

    outputs: torch.Tensor
    """(n, classes), as the last stage gave them."""
    latencies_ms: list[float]
    """Of each request."""
    seconds: float
    """From the first request to the last answer."""
    traces: list[Trace] = field(default_factory=list)

    @property
    def probabilities(self) -> torch.Tensor:
        """Softmax of the outputs, (n, classes)."""
        return self.outputs.float().softmax(1)


def from_dataset(config: Config, part: Literal["train", "test"], limit: int | None) -> Question:
    """The first samples of a part of the config's data set, all of them by default."""
    splits = build_data(config)
    dataset = splits.test if part == "test" else splits.train
    count = min(size(dataset), limit or size(dataset))
    collated = default_collate([dataset[index] for index in range(count)])
    inputs, targets = collated
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    known = targets if isinstance(targets, torch.Tensor) and targets.dim() == 1 else None
    return Question(tuple(f"{part} {index}" for index in range(count)), inputs, known, splits.classes)


def from_images(config: Config, shapes: Sequence[tuple[int, ...]], paths: Sequence[Path]) -> Question:
    """Image files.

    Args:
        config: names the data set, whose normalisation is used.
        shapes: of the model's inputs, as the service tells.
        paths: the files.
    """
    if len(shapes) != 1:
        raise ConfigError(f"the model has {len(shapes)} inputs; image files are for models with one")
    splits = build_data(config)
    images = [read_image(path, shapes[0], splits) for path in paths]
    return Question(tuple(path.name for path in paths), (torch.stack(images),), None, splits.classes)


def ask(
    client: Client, question: Question, batch: int, trace: bool, progress: Callable[[int], None] = lambda _done: None
) -> Reply:
    """Ask a service, request by request, each when the one before is answered.

    Args:
        client: connected.
        question: the samples.
        batch: samples of a request.
        trace: whether the hops are to tell their times.
        progress: told how many samples are answered.

    Raises:
        MslError: what the service refuses, or that it is gone.
    """
    outputs, latencies, traces = [], [], []
    begin = time.perf_counter()
    for start in range(0, len(question.names), batch):
        inputs = [tensor[start : start + batch].contiguous() for tensor in question.inputs]
        sent = time.perf_counter()
        pending = client.submit(*inputs, trace=trace)
        answer = pending.result()
        latencies.append((time.perf_counter() - sent) * 1e3)
        if isinstance(answer, tuple):
            raise ConfigError(f"the model returns {len(answer)} tensors; predictions are made of one, (n, classes)")
        outputs.append(torch.as_tensor(answer))
        if pending.trace is not None:
            traces.append(pending.trace)
        progress(start + len(inputs[0]))
    whole = torch.cat(outputs)
    if whole.dim() != 2:
        raise ConfigError(f"the model's output has the shape {tuple(whole.shape)}; predictions need (n, classes)")
    return Reply(whole, latencies, time.perf_counter() - begin, traces)
