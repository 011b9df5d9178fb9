"""Gradients of weights, computed after those of inputs have been sent on.

The previous stage waits for the gradients of a stage's inputs; nobody waits for those of its weights before the
optimizer steps. Convolutions and linear layers, which take nearly all the time, are therefore run so that a backward
pass computes the former and notes down what the latter need (the split of a backward pass into B and W of Qi et al.,
Zero Bubble Pipeline Parallelism, ICLR 2024). The bits are autograd's: the same operations on the same values, added up
in the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn.functional import conv2d, linear

Tensor = torch.Tensor
Gradients = Callable[[], tuple[Tensor, Tensor | None]]
"""Computes the gradients of a layer's weight and bias."""


class Noted:
    """The layers of a stage whose weights' gradients come late, and what their last backward passes noted down.

    A layer is one of them if it is used once in a pass, is the only owner of its parameters, and nothing watches its
    gradients: else autograd adds up in another order, or somebody waits.

    Args:
        module: the stage; the layers' `forward` is replaced.
    """

    def __init__(self, module: nn.Module) -> None:
        self._noted: list[tuple[nn.Conv2d | nn.Linear, Gradients]] = []
        for layer in _late_layers(module):
            function = _LateConv2d if isinstance(layer, nn.Conv2d) else _LateLinear
            layer.forward = partial(self._forward, layer, function, layer.forward)  # type: ignore[method-assign]

    def take(self) -> list[Callable[[], None]]:
        """What the backward passes since the last call have left to do, in their order."""
        taken, self._noted = self._noted, []
        return [partial(_accumulate, layer, gradients) for layer, gradients in taken]

    def _forward(
        self, layer: nn.Conv2d | nn.Linear, function: Any, plain: Callable[[Tensor], Tensor], received: Tensor
    ) -> Tensor:
        if not torch.is_grad_enabled() or torch.is_autocast_enabled(received.device.type) or _watched(layer):
            return plain(received)
        given = received
        if isinstance(layer, nn.Linear) and received.dim() != 2:
            if received.dim() < 2 or not received.is_contiguous():
                return plain(received)  # torch computes these in another way
            # As torch does it. A view made within the function could not be changed in place after it.
            given = received.reshape(-1, received.shape[-1])
        output: Tensor = function.apply(given, layer.weight, layer.bias, layer, partial(self._note, layer))
        return output if given is received else output.view(*received.shape[:-1], output.shape[-1])

    def _note(self, layer: nn.Conv2d | nn.Linear, gradients: Gradients) -> None:
        self._noted.append((layer, gradients))


class _LateConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, received: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d, note: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(received, weight)
        ctx.layer, ctx.note = layer, note
        return conv2d(received, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        received, weight = ctx.saved_tensors
        layer = ctx.layer

        def gradients(wanted: list[bool]) -> tuple[Tensor | None, ...]:
            sizes = None if layer.bias is None else list(layer.bias.shape)
            settings = (layer.stride, layer.padding, layer.dilation, False, [0] * len(layer.stride), layer.groups)
            found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
                grad, received, weight, sizes, *settings, wanted
            )
            return found

        ctx.note(lambda: gradients([False, True, layer.bias is not None])[1:])
        return gradients([True, False, False])[0] if ctx.needs_input_grad[0] else None, None, None, None, None


class _LateLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, received: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Linear, note: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(received, weight)
        ctx.layer, ctx.note = layer, note
        return linear(received, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        received, weight = ctx.saved_tensors

        def gradients() -> tuple[Tensor, Tensor | None]:
            return grad.t().mm(received), grad.sum(0) if ctx.layer.bias is not None else None

        ctx.note(gradients)
        return grad.mm(weight) if ctx.needs_input_grad[0] else None, None, None, None, None


def _late_layers(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    names = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    return [
        layer
        for layer in _used_once(module)
        if (isinstance(layer, nn.Conv2d | nn.Linear) and _is_plain(layer))
        and all(names[id(p)] == 1 and p.requires_grad for p in layer.parameters(recurse=False))
    ]


def _used_once(module: nn.Module) -> list[nn.Module]:
    """Modules that a pass of the stage calls once, and whose parameters it uses in no other way."""
    if isinstance(module, fx.GraphModule):
        nodes = module.graph.nodes
        calls = Counter(id(module.get_submodule(node.target)) for node in nodes if node.op == "call_module")
        read = {node.target.rpartition(".")[0] for node in nodes if node.op == "get_attr"}
        targets = {node.target for node in nodes if node.op == "call_module"} - read
        found = [module.get_submodule(target) for target in sorted(targets)]
        return [layer for layer in found if calls[id(layer)] == 1]
    if type(module) is nn.Sequential:
        calls = Counter(id(child) for child in module)
        return [child for child in module if calls[id(child)] == 1]
    return [module]


def _is_plain(layer: nn.Conv2d | nn.Linear) -> bool:
    """Whether a layer computes what its class says, from its own parameters."""
    if "weight" not in layer._parameters or "bias" not in layer._parameters or "forward" in vars(layer):
        return False
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def _watched(layer: nn.Module) -> bool:
    """Whether somebody wants to be told of the gradients as soon as they are there."""
    return bool(
        layer._backward_hooks
        or layer._backward_pre_hooks
        or any(p._backward_hooks or p._post_accumulate_grad_hooks for p in layer.parameters(recurse=False))
    )


def _accumulate(layer: nn.Conv2d | nn.Linear, gradients: Gradients) -> None:
    with torch.no_grad():
        for parameter, grad in zip((layer.weight, layer.bias), gradients(), strict=True):
            if parameter is None or grad is None:
                continue
            if parameter.grad is None:
                parameter.grad = grad
            else:
                parameter.grad += grad
