"""Where a run is resumed from, and what has changed since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msl.config import Config, load_config
from msl.errors import CheckpointError, ConfigError
from msl.pipeline.checkpoint import checkpoints

_MAY_CHANGE = (
    "name",
    "split",
    "hosts",
    "chain",
    "cluster",
    "fabric",
    "sr",
    "testbed",
    "serve",
    "max_frame_mb",
    "checkpoint",
    "timeouts",
    "train.epochs",
    "train.in_flight",
    "train.eval_batch",
)
"""Settings that do not change a training's arithmetic."""


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run folder; a checkpoint's own folder is taken as it is.

    Raises:
        CheckpointError: there is none.
    """
    if (run / "training.json").exists() or run.name.startswith("epoch-"):
        return run
    found = checkpoints(run / "checkpoints")
    if not found:
        raise CheckpointError(f"{run}: is no run with a checkpoint; a run has 'checkpoints/epoch-NNNNN' folders")
    return found[-1]


def changes(checkpoint: Path, config: Config) -> list[str]:
    """What differs in the arithmetic between a checkpoint's run and a configuration, e.g. `seed: 0 -> 1`."""
    path = checkpoint.parent.parent / "config.yaml"
    if not path.exists():
        return []
    try:
        before = _flatten(load_config(path).model_dump(mode="json"))
    except ConfigError:
        return [f"{path} cannot be read"]
    after = _flatten(config.model_dump(mode="json"))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _may_change(key)
    ]


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _MAY_CHANGE)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
