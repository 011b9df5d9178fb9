"""Checkpoints by the unsplit model's names: they resume under any cut, and load into the unsplit model.

A checkpoint is a folder `epoch-NNNNN` with
    model.safetensors      parameters and buffers under the unsplit model's names
    optimizer.safetensors  tensors that the optimizer keeps, as `PARAMETER/KEY`
    training.json          all else, and the size and SHA-256 of the two files
It is written beside its place and renamed, so that a half-written one never has a checkpoint's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from msl.errors import CheckpointError
from msl.pipeline.stage import StageState

FORMAT = "msl-checkpoint-1"
_MODEL, _OPTIMIZER, _TRAINING = "model.safetensors", "optimizer.safetensors", "training.json"
_NAME = re.compile(r"epoch-(\d{5,})")


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    epoch: int
    """Epochs completed; the next one to train has this index."""
    step: int
    """Optimizer steps done."""
    seed: int
    """Seed of weights, sampler and dropout; the sampler's position follows from it and the epoch."""
    history: tuple[Mapping[str, Any], ...] = ()
    """What the summary tells of each completed epoch."""


def merge(initial: Mapping[str, torch.Tensor], states: Sequence[StageState]) -> StageState:
    """The state of the unsplit model from those of its stages.

    Args:
        initial: the unsplit model's state dict, for what no stage uses.
        states: one per stage.
    """
    weights = dict(initial)
    optimizer: dict[str, Mapping[str, Any]] = {}
    for state in states:
        weights |= state.weights
        optimizer |= state.optimizer
    learning = next((state for state in states if state.group), states[-1])
    return StageState(weights, optimizer, learning.group, learning.schedule)


def initial_state(model: nn.Module) -> StageState:
    """The state of a model that has not been trained."""
    return StageState({name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, {}, {}, None)


def save(folder: Path, state: StageState, progress: Progress, keep: int) -> Path:
    """Write a checkpoint atomically, then remove all but the newest.

    Args:
        folder: where the checkpoints of a run lie.
        state: of the unsplit model.
        progress: where the training stands.
        keep: how many of the newest stay.

    Returns:
        The checkpoint's folder.
    """
    final = folder / f"epoch-{progress.epoch:05d}"
    for left in folder.glob(".epoch-*"):  # of a save that was cut off
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder / f".{final.name}"
    temporary.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, kept in state.optimizer.items():
        for key, value in kept.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{key}"] = value.contiguous()
            else:
                numbers.setdefault(name, {})[key] = value
    save_file(_storable(state.weights), temporary / _MODEL)
    save_file(tensors, temporary / _OPTIMIZER)
    document = {
        "format": FORMAT,
        "epoch": progress.epoch,
        "step": progress.step,
        "seed": progress.seed,
        "history": list(progress.history),
        "group": dict(state.group),
        "schedule": state.schedule,
        "optimizer_numbers": numbers,
        "files": {name: _fingerprint(temporary / name) for name in (_MODEL, _OPTIMIZER)},
    }
    try:
        text = json.dumps(document, indent=1)
    except TypeError as error:
        raise CheckpointError(f"{final}: the schedule or the optimizer keeps what JSON cannot hold: {error}") from error
    (temporary / _TRAINING).write_text(text, encoding="utf-8")
    for path in temporary.iterdir():
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = (path for path in folder.glob("epoch-*") if _NAME.fullmatch(path.name)) if folder.is_dir() else ()
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def load(path: Path, model: nn.Module) -> tuple[StageState, Progress]:
    """Read a checkpoint for a model.

    Raises:
        CheckpointError: names the checkpoint, and what is missing, damaged or foreign.
    """
    document = _read_document(path)
    for name in (_MODEL, _OPTIMIZER):
        try:
            found = _fingerprint(path / name)
        except OSError as error:
            raise CheckpointError(f"{path}: is incomplete: {name}: {error.strerror}") from error
        if found != document["files"].get(name):
            raise CheckpointError(f"{path}: is damaged: {name} is not what was written; use an older checkpoint")
    try:
        weights = load_file(path / _MODEL)
        tensors = load_file(path / _OPTIMIZER)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    _check_fit(path, weights, model)
    optimizer: dict[str, dict[str, Any]] = {name: dict(kept) for name, kept in document["optimizer_numbers"].items()}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        optimizer.setdefault(name, {})[key] = tensor
    state = StageState(weights, optimizer, document["group"], document["schedule"])
    return state, Progress(document["epoch"], document["step"], document["seed"], tuple(document["history"]))


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads((path / _TRAINING).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is no checkpoint, or half of one: there is no {_TRAINING}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged: {_TRAINING} cannot be read") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is foreign: {_TRAINING} does not say {FORMAT!r}")
    missing = {"epoch", "step", "seed", "history", "group", "schedule", "optimizer_numbers", "files"} - set(document)
    if missing:
        raise CheckpointError(f"{path}: is damaged: {_TRAINING} lacks {', '.join(sorted(missing))}")
    return document


def _check_fit(path: Path, weights: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in weights:
            raise CheckpointError(f"{path}: is of another model: it has no {name!r}")
        if weights[name].shape != tensor.shape or weights[name].dtype != tensor.dtype:
            raise CheckpointError(
                f"{path}: is of another model: {name!r} is {tuple(weights[name].shape)} {weights[name].dtype}, the"
                f" model's is {tuple(tensor.shape)} {tensor.dtype}"
            )
    foreign = set(weights) - set(own)
    if foreign:
        raise CheckpointError(f"{path}: is of another model: it has {sorted(foreign)[0]!r}, which the model has not")


def _storable(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of which no two share memory, which safetensors would refuse: tied ones are stored twice."""
    seen: set[int] = set()
    result = {}
    for name, tensor in weights.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        result[name] = tensor.clone() if shared else tensor.contiguous()
        seen.add(tensor.untyped_storage().data_ptr())
    return result


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
