"""The graph of a model, and where in it a cut before a named module falls."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from msl.errors import ConfigError

_TORCH_FOLDER = str(Path(torch.__file__).parent)
_DROPOUTS: frozenset[Any] = frozenset(
    getattr(nn.functional, name)
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
)


class _Tracer(fx.Tracer):
    """Torch's tracer, with modules that the user keeps whole."""

    def __init__(self, leaf_modules: Iterable[str]) -> None:
        super().__init__()
        self._leaves = frozenset(leaf_modules)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._leaves or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class Trace:
    """A traced model: its nodes in order of execution, each with the modules that it lies in."""

    model: nn.Module
    graph: fx.Graph
    nodes: list[fx.Node] = field(repr=False)
    """All nodes but placeholders, attributes and the output: what computes something."""
    modules: list[tuple[str, ...]] = field(repr=False)
    """For each of `nodes`, the names of the modules it lies in, outermost first."""

    def position(self, name: str) -> int | None:
        """Index of the first node that lies in module `name`; None if the forward pass never enters it."""
        return next((i for i, inside in enumerate(self.modules) if name in inside), None)


def trace(model: nn.Module, leaf_modules: Iterable[str] = ()) -> Trace:
    """Trace a model with `torch.fx`.

    Raises:
        ConfigError: names the line of the model that cannot be traced, and what to do.
    """
    leaves = tuple(leaf_modules)
    names = dict(model.named_modules())
    for index, leaf in enumerate(leaves):
        if leaf not in names:
            raise ConfigError(f"split.leaf_modules[{index}]: no module {leaf!r} in {type(model).__name__}")
    try:
        graph = _Tracer(leaves).trace(model)
    except Exception as error:
        raise ConfigError(
            f"split: {type(model).__name__} cannot be traced: {_place(error)}: {error}".splitlines()[0]
            + "; name the module it lies in under split.leaf_modules to keep it whole, or take the control flow"
            " that depends on data out of forward()"
        ) from error
    nodes, modules = [], []
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        if node.op == "call_function" and node.target in _DROPOUTS:
            raise ConfigError(
                f"split: {type(model).__name__} calls torch.nn.functional.{node.target.__name__}, whose train or eval"
                " mode a traced graph would freeze; use the module (torch.nn.Dropout, ...) instead"
            )
        nodes.append(node)
        modules.append(_enclosing(node))
    return Trace(model, graph, nodes, modules)


def _enclosing(node: fx.Node) -> tuple[str, ...]:
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    deepest = str(node.target) if node.op == "call_module" else (stack[-1] if stack else "")
    parts = deepest.split(".") if deepest else []
    return tuple(".".join(parts[: depth + 1]) for depth in range(len(parts)))


def _place(error: BaseException) -> str:
    """The innermost line of the traceback that is the model's own."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_TORCH_FOLDER) and f.filename != __file__]
    frame = own[-1] if own else frames[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.name} ({frame.line})"


def boundaries(traced: Trace, cut: Sequence[str]) -> list[int]:
    """Index of the first node of each stage but the first.

    Raises:
        ConfigError: a name that does not exist, is never entered, or would leave a stage empty.
    """
    known = dict(traced.model.named_modules())
    result: list[int] = []
    for index, name in enumerate(cut):
        where = f"split.cut[{index}]"
        if name not in known or not name:
            raise ConfigError(
                f"{where}: no module {name!r} in {type(traced.model).__name__};"
                f" cuts are possible at {', '.join(_children(traced.model, name))}"
            )
        position = traced.position(name)
        if position is None:
            raise ConfigError(f"{where}: the forward pass never enters {name!r}, or does so inside a leaf module")
        if position == 0:
            raise ConfigError(f"{where}: {name!r} is where the model begins; the stage before it would be empty")
        if result and position <= result[-1]:
            raise ConfigError(
                f"{where}: {name!r} begins where {cut[index - 1]!r} begins, or before it; name the cuts in the"
                " order of the forward pass, and leave no stage empty"
            )
        result.append(position)
    return result


def _children(model: nn.Module, wrong: str) -> list[str]:
    """Names to offer instead of `wrong`: the children of the deepest module of it that exists."""
    prefix = wrong
    while prefix:
        prefix = prefix.rpartition(".")[0]
        module = dict(model.named_modules()).get(prefix)
        if module is not None:
            names = [f"{prefix}.{name}" if prefix else name for name, _ in module.named_children()]
            if names:
                return names
    return [name for name, _ in model.named_children()]


def live_values(graph: fx.Graph, stage_of: Callable[[fx.Node], int], stages: int) -> list[list[fx.Node]]:
    """For each cut, the values that cross it: made before it (or an input), used after it; in order."""
    crossing: list[list[fx.Node]] = [[] for _ in range(stages - 1)]
    for node in graph.nodes:
        if node.op in ("get_attr", "output"):
            continue
        made = -1 if node.op == "placeholder" else stage_of(node)
        used = max((stages - 1 if user.op == "output" else stage_of(user) for user in node.users), default=made)
        for cut in range(max(made, 0), used):
            crossing[cut].append(node)
    return crossing
