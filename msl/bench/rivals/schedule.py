"""The order of one-forward-one-backward, stage by stage, as torch's `Schedule1F1B` has it."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Work(NamedTuple):
    """A pass of a stage over a micro-batch. At the last stage, a forward pass turns into the backward pass."""

    way: Literal["forward", "backward"]
    micro_batch: int


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> list[Work]:
    """What a stage does in a step, in this order (Narayanan et al., PipeDream, SOSP 2019; flushed at each step)."""
    if stage == stages - 1:
        return [Work("forward", index) for index in range(micro_batches)]
    ahead = min(micro_batches, stages - stage)
    order = [Work("forward", index) for index in range(ahead)]
    for index in range(micro_batches):
        order.append(Work("backward", index))
        if ahead + index < micro_batches:
            order.append(Work("forward", ahead + index))
    return order
