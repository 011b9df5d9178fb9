"""Measures a model and finds cuts that give every stage about the same work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from msl.errors import ConfigError
from msl.pipeline.build import as_inputs
from msl.pipeline.split import Tensors, split
from msl.pipeline.trace import Trace, live_values, trace
from msl.plan import InputSpec, Profile, StageProfile

_ROUNDS = 3
"""Measured passes; the median counts, after one pass to warm up."""


@dataclass(frozen=True)
class _Measured:
    forward_ms: float
    backward_ms: float


def profile(
    model: nn.Module,
    cut: Sequence[str] | None,
    stages: int,
    inputs: Tensors,
    leaf_modules: Sequence[str] = (),
) -> Profile:
    """Measure the stages of a model, after finding balanced cuts if none are given.

    Args:
        model: the unsplit model; its weights, buffers and gradients are left as they are.
        cut: named modules to cut before; None to balance.
        stages: number of stages if `cut` is None.
        inputs: one micro-batch of the model's inputs, (n, ...) each, n >= 2.

    Raises:
        ConfigError: a cut is not possible, or there are fewer places for cuts than needed.
    """
    if cut is None:
        cut = _balanced_cut(model, stages, inputs, leaf_modules)
    modules = split(model, cut, tuple(t[:2] for t in inputs), leaf_modules)
    measured = _measure(model, modules, inputs)
    samples = len(inputs[0])
    crossing = _crossing_bytes(model, modules, inputs)
    return Profile(
        cut=tuple(cut),
        stages=tuple(
            StageProfile(sum(p.numel() for p in module.parameters()), times.forward_ms, times.backward_ms)
            for module, times in zip(modules, measured, strict=True)
        ),
        bytes_across=tuple(size // samples for size in crossing),
        inputs=tuple(InputSpec(tuple(t.shape[1:]), str(t.dtype).removeprefix("torch.")) for t in inputs),
        input_bytes=sum(t.nbytes for t in inputs) // samples,
    )


def _balanced_cut(model: nn.Module, stages: int, inputs: Tensors, leaf_modules: Sequence[str]) -> tuple[str, ...]:
    if stages == 1:
        return ()
    candidates = _candidates(model, leaf_modules, stages)
    if len(candidates) < stages - 1:
        raise ConfigError(
            f"split.stages: {type(model).__name__} can be cut into at most {len(candidates) + 1} stages, not {stages}"
        )
    segments = split(model, candidates, tuple(t[:2] for t in inputs), leaf_modules)
    costs = [m.forward_ms + m.backward_ms for m in _measure(model, segments, inputs)]
    return tuple(candidates[start - 1] for start in partition(costs, stages)[1:])


def _candidates(model: nn.Module, leaf_modules: Sequence[str], stages: int) -> list[str]:
    """Names to cut before, in order: where a single tensor crosses, if that gives enough of them."""
    if isinstance(model, nn.Sequential) and len(model) >= stages:
        return [name for name, _ in model.named_children()][1:]
    traced = trace(model, leaf_modules)
    first: dict[int, str] = {}
    for name, _ in model.named_modules():  # outer modules come first, so that the shortest name wins
        position = traced.position(name) if name else None
        if position:
            first.setdefault(position, name)
    possible = [first[position] for position in sorted(first)]
    single = [name for name in possible if _crossing_count(traced, name) == 1]
    return single if len(single) >= stages - 1 else possible


def _crossing_count(traced: Trace, name: str) -> int:
    start = traced.position(name)
    assert start is not None
    late = set(traced.nodes[start:])
    return len(live_values(traced.graph, lambda node: int(node in late), 2)[0])


def partition(costs: Sequence[float], parts: int) -> list[int]:
    """Cut a row of costs into contiguous parts, none empty, so that the largest sum is as small as possible.

    Args:
        costs: at least `parts` of them.

    Returns:
        The index at which each part starts; the first is 0.
    """
    count = len(costs)
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    best = [total[:]]  # best[k][i]: smallest possible largest sum of the first i costs in k + 1 parts
    choice = [[0] * (count + 1)]
    for k in range(1, parts):
        row, chosen = [float("inf")] * (count + 1), [0] * (count + 1)
        for i in range(k + 1, count + 1):
            row[i], chosen[i] = min((max(best[k - 1][j], total[i] - total[j]), j) for j in range(k, i))
        best.append(row)
        choice.append(chosen)
    starts = []
    end = count
    for k in range(parts - 1, -1, -1):
        starts.append(choice[k][end])
        end = choice[k][end]
    return starts[::-1]


def _measure(model: nn.Module, modules: Sequence[nn.Module], inputs: Tensors) -> list[_Measured]:
    """Forward and backward time of each of a chain of modules; restores the model's buffers."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    rounds = [_one_round(modules, inputs) for _ in range(_ROUNDS + 1)][1:]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
    model.zero_grad(set_to_none=True)
    return [
        _Measured(
            statistics.median(r[index].forward_ms for r in rounds),
            statistics.median(r[index].backward_ms for r in rounds),
        )
        for index in range(len(modules))
    ]


def _one_round(modules: Sequence[nn.Module], inputs: Tensors) -> list[_Measured]:
    measured = []
    values = inputs
    for module in modules:
        # Cloned: the module may begin with an in-place operation, which a leaf does not allow.
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in values]
        entered = [t.clone() if t.requires_grad else t for t in leaves]
        start = time.perf_counter()
        values = as_inputs(module(*entered))
        middle = time.perf_counter()
        roots = [t for t in values if t.requires_grad]
        if roots:
            torch.autograd.backward(roots, [torch.ones_like(t) for t in roots])
        end = time.perf_counter()
        measured.append(_Measured((middle - start) * 1e3, (end - middle) * 1e3))
    return measured


@torch.no_grad()
def _crossing_bytes(model: nn.Module, modules: Sequence[nn.Module], inputs: Tensors) -> list[int]:
    sizes = []
    was_training = model.training
    for module in modules:
        module.eval()
    values = inputs
    for module, _ in pairwise(modules):
        values = as_inputs(module(*values))
        sizes.append(sum(t.nbytes for t in values))
    for module in (*modules, model):
        module.train(was_training)
    return sizes
