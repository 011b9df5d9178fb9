"""summary.json: what a run was and how it went, for programs that compare runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msl.plan import Plan


def percentile(values: Sequence[float], percent: int) -> float | None:
    """A percentile of measured values, by linear interpolation; None without values."""
    if len(values) < 2:
        return values[0] if values else None
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def summarize(
    plan: Plan,
    epochs: Sequence[Mapping[str, Any]],
    steps: int,
    step_ms: Sequence[float],
    samples_per_second: float | None,
    completed: bool,
) -> dict[str, Any]:
    """The summary's document.

    Args:
        plan: what was run.
        epochs: per epoch: epoch, loss, accuracy, test_loss, test_accuracy, seconds.
        steps: optimizer steps since the beginning of the training.
        step_ms: wall time of each step of this run.
        samples_per_second: over all training steps of this run.
        completed: whether the run came to its end.
    """
    return {
        "name": plan.name,
        "completed": completed,
        "fabric": plan.fabric,
        "stages": [
            {"name": m.place.name, "host": m.place.host, "parameters": m.parameters}
            for m in plan.members
            if m.place.stage is not None
        ],
        "epochs": list(epochs),
        "steps": steps,
        "samples_per_second": samples_per_second,
        "step_ms": {"p50": percentile(step_ms, 50), "p95": percentile(step_ms, 95)},
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document so that a reader never sees half of it."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
