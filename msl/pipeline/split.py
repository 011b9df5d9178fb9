"""Cuts a model into stages that keep the unsplit model's modules, parameter names, and train/eval mode."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import fx, nn

from msl.errors import ConfigError
from msl.pipeline.observe import Observed, observe
from msl.pipeline.trace import Trace, boundaries, live_values, trace

Tensors = tuple[torch.Tensor, ...]


def split(model: nn.Module, cut: Sequence[str], example: Tensors, leaf_modules: Sequence[str] = ()) -> list[nn.Module]:
    """Cut a model before each of the named modules.

    An `nn.Sequential` cut between its children is not traced; any other model goes through `torch.fx`.

    Args:
        model: the unsplit model; the stages share its modules and parameters.
        cut: names of modules in the order of the forward pass.
        example: inputs of the model, with two or more samples in dimension 0; run once, in eval mode.
        leaf_modules: names of modules that are not traced into.

    Returns:
        len(cut) + 1 stages. Each takes the tensors that cross the cut before it and returns a tensor or a
        tuple of tensors: those that cross the cut after it. Parameter names are those of `model`.

    Raises:
        ConfigError: a cut that is not possible, and where one is.
    """
    if not cut:
        return [model]
    stages = _sequential(model, cut) if isinstance(model, nn.Sequential) else None
    if stages is None:
        stages = _graph_stages(trace(model, leaf_modules), cut, example)
    _check_parameters(model, stages)
    return stages


def _sequential(model: nn.Sequential, cut: Sequence[str]) -> list[nn.Module] | None:
    """Stages of whole children; None if a cut lies inside a child."""
    names = [name for name, _ in model.named_children()]
    if any(name not in names for name in cut):
        return None
    starts = [0, *(names.index(name) for name in cut), len(names)]
    for index, (start, end) in enumerate(pairwise(starts)):
        if end <= start:
            raise ConfigError(
                f"split.cut[{min(index, len(cut) - 1)}]: {cut[min(index, len(cut) - 1)]!r} leaves an empty stage;"
                f" the model's children are {', '.join(names)} in this order"
            )
    children = list(model.named_children())
    return [nn.Sequential(OrderedDict(children[start:end])).train(model.training) for start, end in pairwise(starts)]


def _graph_stages(traced: Trace, cut: Sequence[str], example: Tensors) -> list[nn.Module]:
    starts = boundaries(traced, cut)
    observed = observe(traced, example)
    kinds = observed.kinds
    assigned: dict[fx.Node, int] = {}
    for index, node in enumerate(traced.nodes):
        assigned[node] = sum(index >= start for start in starts)
        made = node.args[0] if node.op == "call_function" and node.target is operator.getitem else None
        if made in assigned and kinds[made] is not torch.Tensor:  # type: ignore[index]
            # An element of a tuple is taken where the tuple is made, so that tensors cross, not tuples.
            assigned[node] = assigned[made]  # type: ignore[index]
    crossing = live_values(traced.graph, assigned.__getitem__, len(starts) + 1)
    for index, nodes in enumerate(crossing):
        _check_crossing(index, cut[index], nodes, assigned, observed)
    for stage in range(len(starts) + 1):
        if not any(assigned[node] == stage and kinds[node] is torch.Tensor for node in traced.nodes):
            raise ConfigError(f"split.cut: stage {stage} would be empty: no tensor is computed in it")
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    return [
        _stage_module(
            traced,
            [node for node in traced.nodes if assigned[node] == stage],
            inputs if stage == 0 else crossing[stage - 1],
            crossing[stage] if stage < len(starts) else None,
            kinds,
        )
        for stage in range(len(starts) + 1)
    ]


def _check_crossing(
    index: int, name: str, nodes: Sequence[fx.Node], assigned: Mapping[fx.Node, int], observed: Observed
) -> None:
    where = f"split.cut[{index}]: a cut before {name!r}"
    memory: dict[int, fx.Node] = {}
    for node in nodes:
        if observed.kinds[node] not in (torch.Tensor, int, float, bool):
            raise ConfigError(
                f"{where} would have to carry {node.name!r}, a {observed.kinds[node].__name__}; only tensors and plain"
                " numbers can cross"
            )
        if node not in observed.memory:
            continue
        other = memory.setdefault(observed.memory[node], node)
        changing = [n for n in observed.changes.get(observed.memory[node], ()) if assigned[n] > index]
        if other is not node and changing:
            # Beyond the cut the two would be copies, and only one of them would change.
            raise ConfigError(
                f"{where} would separate {other.name!r} and {node.name!r}, which share memory that"
                f" {changing[0].name!r} changes in place later; cut elsewhere, or make that operation not in-place"
            )


def _stage_module(
    traced: Trace,
    nodes: list[fx.Node],
    entering: list[fx.Node],
    leaving: list[fx.Node] | None,
    kinds: Mapping[fx.Node, type],
) -> nn.Module:
    """The graph of one stage; `leaving` is None for the last, which returns what the model returns."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in entering:
        copy = graph.placeholder(node.name)
        if node.op != "placeholder" and kinds[node] is not torch.Tensor:
            copy = graph.call_method("item", (copy,))  # a plain number travels as a tensor without dimensions
        copies[node] = copy

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies and node.op == "get_attr":
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in nodes:
        for argument in node.all_input_nodes:
            copy_of(argument)
        copies[node] = graph.node_copy(node, copy_of)
    if leaving is None:
        output = next(node for node in traced.graph.nodes if node.op == "output")
        for argument in output.all_input_nodes:
            copy_of(argument)
        graph.output(fx.map_arg(output.args[0], copy_of))
    else:
        graph.output(
            tuple(
                copies[node] if kinds[node] is torch.Tensor else graph.call_function(torch.tensor, (copies[node],))
                for node in leaving
            )
        )
    graph.lint()
    return fx.GraphModule(traced.model, graph, f"{type(traced.model).__name__}Stage").train(traced.model.training)


def _check_parameters(model: nn.Module, stages: Sequence[nn.Module]) -> None:
    """Refuse a parameter or buffer that two stages would own: their copies would drift apart."""
    owner: dict[int, int] = {}
    names = {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}
    for index, stage in enumerate(stages):
        for tensor in {id(t): t for t in (*stage.parameters(), *stage.buffers())}.values():
            first = owner.setdefault(id(tensor), index)
            if first != index:
                raise ConfigError(
                    f"split: {names[id(tensor)]!r} is used by stage {first} and by stage {index}; shared weights"
                    " cannot be cut apart, so put both uses into one stage"
                )
