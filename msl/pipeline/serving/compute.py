"""From requests to outputs: a stage in eval mode, on one request or on several at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from msl.errors import MslError, StageError
from msl.net.frame import Role
from msl.pipeline.exchange import present
from msl.pipeline.serving.request import Request
from msl.pipeline.wire import tensors_in

Outputs = list[torch.Tensor]


class Inference:
    """A stage that only infers.

    Args:
        module: takes the tensors that enter the stage, returns a tensor or a tuple of tensors.
        device: where it computes.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        self._module = module.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over this stage's part of the unsplit model's weights.

        Raises:
            StageError: a weight is missing or has another shape.
        """
        own = self._module.state_dict()
        if missing := [name for name in own if name not in weights]:
            raise StageError(f"the checkpoint has no {missing[0]!r}")
        try:
            self._module.load_state_dict({name: weights[name] for name in own})
        except RuntimeError as error:
            raise StageError(" ".join(str(error).split())) from error

    def compute(self, requests: Sequence[Request]) -> list[Outputs | MslError]:
        """Outputs of each request, or why there are none.

        One request alone is computed as the unsplit model would, to the last bit. Requests that are merged share a
        batch, in which some kernels round differently.
        """
        if len(requests) > 1:
            try:
                return list(self._merged(requests))
            except Exception:  # whose fault it is shows when each is computed by itself
                return [self._guarded(request) for request in requests]
        return [self._guarded(requests[0])]

    def _guarded(self, request: Request) -> Outputs | MslError:
        try:
            return self._run(inputs_of(request))
        except MslError as error:
            return error
        except Exception as error:
            return StageError(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")

    def _merged(self, requests: Sequence[Request]) -> list[Outputs]:
        counts = [request.samples for request in requests]
        inputs = [inputs_of(request) for request in requests]
        if any(len(one) != count for tensors, count in zip(inputs, counts, strict=True) for one in tensors):
            raise StageError("the inputs are not one for each sample")
        outputs = self._run([torch.cat(column) for column in zip(*inputs, strict=True)])
        if any(output.dim() == 0 or len(output) != sum(counts) for output in outputs):
            raise StageError("the outputs are not one for each sample")
        return [list(parts) for parts in zip(*(torch.split(output, counts) for output in outputs), strict=True)]

    @torch.inference_mode()
    def _run(self, inputs: Sequence[torch.Tensor]) -> Outputs:
        outputs = self._module(*(tensor.to(self._device) for tensor in inputs))
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        if not outputs or not all(isinstance(output, torch.Tensor) for output in outputs):
            raise StageError("a stage must return a tensor or a tuple of tensors")
        return outputs


def inputs_of(request: Request) -> list[torch.Tensor]:
    """The tensors that enter the stage; they lie in the request's buffer."""
    return present(tensors_in(request.frame, Role.SMASHED), request.frame.header)
