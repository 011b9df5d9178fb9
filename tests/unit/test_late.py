"""Gradients of weights that come late: the same bits as autograd's, and only where nobody would notice."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import torch
from torch import nn

from msl.net.buffers import BufferPool
from msl.net.connection import Frame
from msl.net.frame import Kind
from msl.pipeline.counters import Counters
from msl.pipeline.late import Noted
from msl.pipeline.link import Inbox
from msl.pipeline.nsf import NsfLoop
from msl.pipeline.owed import Owed
from msl.pipeline.stage import Stage
from tests.unit import toys
from tests.unit.neighbours import LAST, PATIENCE_S, Rig, link, make_stage

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(3, 8, 3, padding=1), (5, 3, 16, 16)),
    "conv without bias, strided": (lambda: nn.Conv2d(4, 8, 3, stride=2, bias=False), (5, 4, 17, 17)),
    "pointwise conv": (lambda: nn.Conv2d(8, 16, 1, bias=False), (3, 8, 9, 9)),
    "dilated conv in groups": (lambda: nn.Conv2d(8, 8, 3, dilation=2, groups=4), (2, 8, 12, 12)),
    "depthwise conv": (lambda: nn.Conv2d(8, 8, 3, groups=8, padding=1), (2, 8, 12, 12)),
    "linear": (lambda: nn.Linear(33, 17), (6, 33)),
    "linear of one sample": (lambda: nn.Linear(33, 17), (1, 33)),
    "linear without bias": (lambda: nn.Linear(33, 17, bias=False), (6, 33)),
    "linear of sequences": (lambda: nn.Linear(33, 17), (6, 5, 33)),
    "linear of one long sequence": (lambda: nn.Linear(33, 17), (1, 70, 33)),
    "linear of sequences without bias": (lambda: nn.Linear(33, 17, bias=False), (2, 3, 5, 33)),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_late_gradients_are_autograds_to_the_last_bit(name: str, threads: int) -> None:
    make, shape = LAYERS[name]
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    layer = make()
    model = nn.Sequential(nn.Tanh(), layer, nn.ReLU(inplace=True))
    batches = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    grads = [torch.randn_like(model(batch)) for batch in batches]
    for batch, grad in zip(batches, grads, strict=True):
        model(batch).backward(grad)
    wanted = [parameter.grad.clone() for parameter in layer.parameters()], [batch.grad.clone() for batch in batches]
    for tensor in (*layer.parameters(), *batches):
        tensor.grad = None
    noted = Noted(model)
    left = []
    for batch, grad in zip(batches, grads, strict=True):
        model(batch).backward(grad)
        left.append(noted.take())
    assert [len(of_pass) for of_pass in left] == [1, 1, 1]
    assert all(parameter.grad is None for parameter in layer.parameters())
    for of_pass in left:
        for accumulate in of_pass:
            accumulate()
    found = [parameter.grad for parameter in layer.parameters()], [batch.grad for batch in batches]
    for ours, theirs in zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True):
        assert torch.equal(ours, theirs)


def is_late(layer: nn.Module) -> bool:
    return "forward" in vars(layer)


def test_what_autograd_would_add_up_in_another_order_is_not_late() -> None:
    tied = toys.Tied()
    Noted(torch.fx.symbolic_trace(tied))
    assert not is_late(tied.first)
    assert not is_late(tied.second)
    layer = nn.Linear(4, 4)
    Noted(nn.Sequential(layer, nn.ReLU(), layer))
    assert not is_late(layer)
    frozen = nn.Linear(4, 4)
    frozen.weight.requires_grad_(False)
    Noted(nn.Sequential(frozen))
    assert not is_late(frozen)


def test_a_layer_whose_weight_is_read_elsewhere_or_is_made_is_not_late() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Linear(4, 4)
            self.made = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.free = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.free(self.made(self.plain(x))) + self.plain.weight.sum()

    model = Reads()
    traced = torch.fx.GraphModule(model, _LeafTracer().trace(model))
    Noted(traced)
    assert [is_late(layer) for layer in (traced.plain, traced.made, traced.free)] == [False, False, True]


class _LeafTracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def test_a_watched_gradient_is_not_late() -> None:
    layer = nn.Linear(4, 4)
    noted = Noted(nn.Sequential(layer))
    seen: list[torch.Tensor] = []
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p))
    layer(torch.zeros(1, 4)).sum().backward()
    assert noted.take() == []
    assert seen


def test_nothing_is_noted_down_where_no_gradient_is_wanted() -> None:
    layer = nn.Linear(4, 4)
    noted = Noted(nn.Sequential(layer))
    with torch.inference_mode():
        layer(torch.zeros(1, 4))
    assert noted.take() == []


def test_a_stage_completes_its_oldest_pass_first_and_all_of_them_before_it_steps() -> None:
    stage = make_stage()
    weight = stage.module.weight
    before = weight.detach().clone()
    for index in range(3):
        stage.forward([torch.full((1, 4), float(index), requires_grad=True)], 0, index)
    for _ in range(3):
        stage.backward([torch.ones(1, 4)])
    assert (stage.owed, weight.grad) == (3, None)
    stage.complete()
    assert torch.equal(weight.grad, torch.zeros(4, 4))
    stage.complete()
    assert torch.equal(weight.grad, torch.ones(4, 4))
    stage.step()
    assert stage.owed == 0
    assert torch.allclose(weight.detach(), before - 0.1 * 3)


def test_a_buffer_is_lent_until_its_last_lease_is_released() -> None:
    pool = BufferPool()
    first = pool.lease(10)
    second = first.share()
    first.release()
    first.release()
    assert pool.lent_bytes == 4096
    second.release()
    assert pool.lent_bytes == 0


def test_no_more_passes_are_put_off_than_the_limit_and_their_buffers_come_back() -> None:
    stage, pool = make_stage(), BufferPool()
    owed = Owed(stage, Counters())
    most = 0
    for index in range(8):
        lease = pool.lease(64)
        stage.forward([torch.zeros((1, 4), requires_grad=True)], 0, index)
        stage.backward([torch.ones(1, 4)])
        owed.hold([lease])
        owed.limit()
        lease.release()
        most = max(most, stage.owed)
    assert most == 3
    assert pool.lent_bytes == 3 * 4096
    owed.complete()
    assert (stage.owed, pool.lent_bytes) == (0, 0)


def test_gradients_are_sent_on_before_those_of_the_weights_are_computed() -> None:
    """The previous hop has its answer while the stage is kept from computing what nobody waits for."""

    class Slow(Stage):
        allowed = threading.Event()

        def complete(self) -> None:
            assert self.allowed.wait(PATIENCE_S)
            super().complete()

    torch.manual_seed(0)
    stage = Slow(nn.Linear(4, 4), lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    before = stage.module.weight.detach().clone()
    with contextlib.ExitStack() as stack:
        inbox: Inbox = Inbox()
        previous, behind = link(stack, "previous", inbox, "source on host n0", PATIENCE_S, 2)
        following, ahead = link(stack, "next", inbox, "sink on host n2", PATIENCE_S, 2)
        rig = Rig(NsfLoop(stage, "nsf1", "n1", inbox, behind, ahead), previous, following)
        rig.start()
        stack.callback(rig.join)
        stack.callback(rig.loop.close)
        rig.previous.request(LAST)
        rig.following.take()
        rig.following.answer()
        frame: Frame = rig.previous.take()
        assert frame.kind is Kind.BACKWARD
        assert torch.equal(stage.module.weight.detach(), before)
        assert not rig.loop.counters.records
        stage.allowed.set()
        rig.previous.control(Kind.EPOCH)  # waits for the optimizer's step
        rig.following.take()
        rig.following.control(Kind.EPOCH)
        rig.previous.take()
        assert [record.step for record in rig.loop.counters.records] == [0]
