"""Runs a traced model once and notes of each value what a cut must know: its type, its memory, who changes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from msl.errors import ConfigError
from msl.pipeline.trace import Trace


@dataclass
class Observed:
    """What one run of a graph showed."""

    kinds: dict[fx.Node, type] = field(default_factory=dict)
    """Python type of each value; `torch.Tensor` for all kinds of tensors."""
    memory: dict[fx.Node, int] = field(default_factory=dict)
    """For tensors: the address of their storage, which views share."""
    changes: dict[int, list[fx.Node]] = field(default_factory=dict)
    """Per storage: the nodes that change it in place."""


class _Observer(fx.Interpreter):
    def __init__(self, traced: Trace) -> None:
        # All values are kept to the end, so that no two of them lie at the same address in turn.
        super().__init__(traced.model, garbage_collect_values=False, graph=traced.graph)
        self.seen = Observed()

    def run_node(self, n: fx.Node) -> Any:
        inputs = [self.env[node] for node in n.all_input_nodes]
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        versions = [tensor._version for tensor in tensors]
        value = super().run_node(n)
        for tensor, version in zip(tensors, versions, strict=True):
            if tensor._version != version:
                self.seen.changes.setdefault(tensor.untyped_storage().data_ptr(), []).append(n)
        if isinstance(value, torch.Tensor):
            self.seen.kinds[n] = torch.Tensor
            self.seen.memory[n] = value.untyped_storage().data_ptr()
        else:
            self.seen.kinds[n] = type(value)
        return value


def observe(traced: Trace, example: tuple[torch.Tensor, ...]) -> Observed:
    """Run a traced model in eval mode, without gradients.

    Args:
        traced: the model.
        example: its inputs, (n, ...) each; they are not changed.

    Raises:
        ConfigError: the model does not run on them.
    """
    observer = _Observer(traced)
    was_training = traced.model.training
    traced.model.eval()
    try:
        with torch.no_grad():
            observer.run(*(tensor.clone() for tensor in example))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"split: {type(traced.model).__name__} does not run on a sample of the data: {reason}"
        ) from error
    finally:
        traced.model.train(was_training)
    return observer.seen
