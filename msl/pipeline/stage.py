"""One part of the cut model with its optimizer: forward, backward, step. Knows nothing of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from msl.errors import StageError
from msl.pipeline.late import Noted
from msl.pipeline.randomness import Position, seed_dropout

Tensors = Sequence[torch.Tensor]


class _Enter(torch.autograd.Function):
    """Gives received tensors a place in the graph, so that a stage may begin with an in-place operation.

    A leaf that requires a gradient cannot be changed in place, and a clone would cost a copy: this makes new
    tensors over the same memory.
    """

    @staticmethod
    def forward(ctx: Any, *received: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(
            torch.empty(0, dtype=t.dtype, device=t.device).set_(
                t.untyped_storage(), t.storage_offset(), t.size(), t.stride()
            )
            for t in received
        )

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return grads


@dataclass
class _Pass:
    """A forward pass whose backward pass has not come yet."""

    leaves: list[torch.Tensor]
    outputs: list[torch.Tensor]


@dataclass(frozen=True)
class StageState:
    """What a stage has learnt, by the unsplit model's names."""

    weights: Mapping[str, torch.Tensor]
    """Parameters and buffers."""
    optimizer: Mapping[str, Mapping[str, Any]]
    """Per parameter, what the optimizer keeps of it: tensors and plain numbers."""
    group: Mapping[str, Any]
    """The optimizer's settings as they stand (learning rate, momentum, ...)."""
    schedule: Mapping[str, Any] | None
    """The state of the learning-rate schedule."""


class Stage:
    """A stage of the cut model.

    Args:
        module: takes the tensors that enter the stage, returns a tensor or a tuple of tensors.
        make_optimizer: called with the stage's parameters; not called when it has none.
        make_schedule: called with the optimizer; None without a schedule.
        every: when the schedule advances.
        seed: seed of dropout.
        device: where the stage computes.
    """

    def __init__(
        self,
        module: nn.Module,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
        make_schedule: Callable[[Optimizer], LRScheduler] | None = None,
        every: Literal["step", "epoch"] = "epoch",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.module = module.to(device)
        self.device = torch.device(device)
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        parameters = list(self._parameters.values())
        self.optimizer = make_optimizer(parameters) if make_optimizer and parameters else None
        self.schedule = make_schedule(self.optimizer) if make_schedule and self.optimizer else None
        self._every = every
        self._position = Position()
        self._passes: deque[_Pass] = deque()
        self._noted = Noted(module)
        self._owed: deque[list[Callable[[], None]]] = deque()
        seed_dropout(module, seed, self._position)

    @property
    def learning_rate(self) -> float | None:
        """The optimizer's learning rate as it stands; None for a stage without parameters."""
        return float(self.optimizer.param_groups[0]["lr"]) if self.optimizer else None

    @property
    def passes(self) -> int:
        """Forward passes in train mode that wait for their backward pass."""
        return len(self._passes)

    @property
    def owed(self) -> int:
        """Backward passes whose weights' gradients are not all computed yet: what `complete` is for."""
        return len(self._owed)

    def forward(self, inputs: Tensors, step: int, micro_batch: int) -> list[torch.Tensor]:
        """Forward pass in train mode; the graph is kept until `backward`.

        Args:
            inputs: those that require a gradient get one in `backward`; their memory must stay until then.
            step: counts optimizer steps from the beginning of the training.
            micro_batch: index within the step.

        Returns:
            The stage's outputs, still in the graph: `requires_grad` says which of them want a gradient.
        """
        self._position.step, self._position.micro_batch = step, micro_batch
        self.module.train()
        placed = [t.to(self.device) for t in inputs]
        leaves = [t for t in placed if t.requires_grad]
        entered = iter(_Enter.apply(*leaves) if leaves else ())  # type: ignore[no-untyped-call]
        outputs = _as_list(self.module(*[next(entered) if t.requires_grad else t for t in placed]))
        self._passes.append(_Pass(leaves, outputs))
        return outputs

    def backward(self, grads: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Backward pass of the oldest waiting forward pass.

        Gradients accumulate in the parameters, those of convolutions and linear layers in `complete` or `step`: the
        inputs' and `grads`' memory must stay until then.

        Args:
            grads: one per output that requires a gradient, in order; None where there is none.

        Returns:
            One per input that required a gradient, in order; None where the input was not used.

        Raises:
            StageError: the gradients do not fit the outputs.
        """
        done = self._passes.popleft()
        wanting = [t for t in done.outputs if t.requires_grad]
        if len(wanting) != len(grads):
            raise StageError(f"{len(grads)} gradients came back for {len(wanting)} outputs")
        roots, values = [], []
        for output, grad in zip(wanting, grads, strict=True):
            if grad is None:
                continue
            if grad.shape != output.shape or grad.dtype != output.dtype:
                raise StageError(
                    f"a gradient of shape {tuple(grad.shape)}, {grad.dtype} came back for an output of shape"
                    f" {tuple(output.shape)}, {output.dtype}"
                )
            roots.append(output)
            values.append(grad.to(self.device))
        if roots:
            torch.autograd.backward(roots, values)
        entering = [leaf.grad for leaf in done.leaves]
        self._own_gradients([*grads, *entering])
        left = self._noted.take()
        if left:
            self._owed.append(left)
        return entering

    def complete(self) -> None:
        """Compute what the oldest backward pass has left to do."""
        for accumulate in self._owed.popleft():
            accumulate()

    def _own_gradients(self, others: Sequence[torch.Tensor | None]) -> None:
        """Copy parameter gradients that share memory with gradients that are sent, or were received.

        Autograd may take a gradient over as a parameter's instead of copying it. The next micro-batch would
        then add to memory that is being sent, or that is a receive buffer with other contents by then.
        """
        storages = {t.untyped_storage().data_ptr() for t in others if t is not None and t.numel()}
        for parameter in self._parameters.values():
            if parameter.grad is not None and parameter.grad.untyped_storage().data_ptr() in storages:
                parameter.grad = parameter.grad.clone()

    @torch.inference_mode()
    def infer(self, inputs: Tensors) -> list[torch.Tensor]:
        """Forward pass in eval mode; no graph is kept."""
        self.module.eval()
        return _as_list(self.module(*[t.to(self.device) for t in inputs]))

    def step(self) -> None:
        """Optimizer step with the accumulated gradients, which are cleared; advances a per-step schedule."""
        while self._owed:
            self.complete()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.schedule is not None and self._every == "step":
            self.schedule.step()

    def end_epoch(self) -> None:
        """Advances a per-epoch schedule."""
        if self.schedule is not None and self._every == "epoch":
            self.schedule.step()

    def state(self) -> StageState:
        """A copy of what the stage has learnt, on the CPU."""
        kept: dict[str, Mapping[str, Any]] = {}
        group: Mapping[str, Any] = {}
        if self.optimizer is not None:
            for name, parameter in self._parameters.items():
                kept[name] = {key: _copy(value) for key, value in self.optimizer.state.get(parameter, {}).items()}
            group = {key: value for key, value in self.optimizer.param_groups[0].items() if key != "params"}
        return StageState(
            {name: _copy(tensor) for name, tensor in self.module.state_dict().items()},
            kept,
            group,
            self.schedule.state_dict() if self.schedule else None,
        )

    def load(self, state: StageState) -> None:
        """Take over this stage's part of a state; what it does not know is ignored.

        Raises:
            StageError: a weight of this stage is missing or has another shape.
        """
        own = self.module.state_dict()
        missing = [name for name in own if name not in state.weights]
        if missing:
            raise StageError(f"the state to load has no {missing[0]!r}")
        try:
            self.module.load_state_dict({name: state.weights[name] for name in own})
        except RuntimeError as error:
            raise StageError(" ".join(str(error).split())) from error
        if self.optimizer is None:
            return
        for name, parameter in self._parameters.items():
            if state.optimizer.get(name):
                self.optimizer.state[parameter] = {
                    key: _copy(value, None if key == "step" else self.device)
                    for key, value in state.optimizer[name].items()
                }
        self.optimizer.param_groups[0].update(state.group)
        if self.schedule is not None and state.schedule is not None:
            self.schedule.load_state_dict(dict(state.schedule))


def _as_list(outputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    outputs = list(outputs)
    if not all(isinstance(t, torch.Tensor) for t in outputs):
        raise StageError("a stage must return a tensor or a tuple of tensors")
    return outputs


def _copy(value: Any, device: torch.device | None = torch.device("cpu")) -> Any:  # noqa: B008
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(device, copy=True) if device else value.detach().clone()
