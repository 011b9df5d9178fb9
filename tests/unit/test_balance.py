"""Balanced cuts, and what the profile tells."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from msl.errors import ConfigError
from msl.models.resnet import resnet18
from msl.pipeline.balance import partition, profile
from tests.unit import toys


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9), st.integers(1, 9))
def test_partition_is_as_good_as_the_best_of_all(costs: list[float], parts: int) -> None:
    if parts > len(costs):
        return
    starts = partition(costs, parts)
    assert starts[0] == 0
    assert starts == sorted(set(starts))  # no empty part
    assert len(starts) == parts

    def largest(chosen: tuple[int, ...]) -> float:
        ends = [*chosen[1:], len(costs)]
        return max(sum(costs[a:b]) for a, b in zip(chosen, ends, strict=True))

    best = min(largest((0, *rest)) for rest in itertools.combinations(range(1, len(costs)), parts - 1))
    assert largest(tuple(starts)) == pytest.approx(best)


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 6])
def test_resnet_is_balanced_without_an_empty_stage(stages: int) -> None:
    model = resnet18(num_classes=10, in_channels=1)
    measured = profile(model, None, stages, (torch.randn(4, 1, 32, 32),))
    assert len(measured.stages) == stages
    assert len(measured.cut) == len(measured.bytes_across) == stages - 1
    assert all(stage.forward_ms > 0 for stage in measured.stages)
    assert sum(stage.parameters for stage in measured.stages) == sum(p.numel() for p in model.parameters())


def test_bytes_across_a_cut_are_those_of_one_sample() -> None:
    measured = profile(resnet18(num_classes=10), ["layer2", "layer4"], 3, (torch.randn(6, 3, 64, 64),))
    assert measured.bytes_across == (64 * 16 * 16 * 4, 256 * 4 * 4 * 4)
    assert measured.input_bytes == 3 * 64 * 64 * 4


def test_measuring_leaves_weights_buffers_gradients_and_mode_alone() -> None:
    model = resnet18(num_classes=10, in_channels=1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    profile(model, None, 3, (torch.randn(4, 1, 32, 32),))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_a_slow_layer_gets_a_stage_of_its_own() -> None:
    model = nn.Sequential(*[nn.Linear(32, 32) for _ in range(3)], nn.Linear(32, 4096), nn.Linear(4096, 32))
    measured = profile(model, None, 2, (torch.randn(512, 32),))
    assert measured.cut in (("3",), ("4",))


def test_more_stages_than_the_model_has_places_for_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"split.stages: .* at most \d+ stages, not 40"):
        profile(toys.Awkward(), None, 40, (torch.randn(2, 1, 8, 8),))
