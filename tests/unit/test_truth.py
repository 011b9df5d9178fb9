"""The split run equals the unsplit model on the same micro-batches, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.chains import make_config, train_split, train_unsplit

SGD = {"factory": "torch.optim:SGD", "args": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}}
ADAM = {"factory": "torch.optim:Adam", "args": {"lr": 0.003}}
ONE_CYCLE = {
    "factory": "torch.optim.lr_scheduler:OneCycleLR",
    "args": {"max_lr": 0.05, "total_steps": "$total_steps"},
    "every": "step",
}
COSINE = {"factory": "torch.optim.lr_scheduler:CosineAnnealingLR", "args": {"T_max": "$epochs"}, "every": "epoch"}
TOY_DATA = {
    "factory": "msl.data.synthetic:random_images",
    "args": {"num_train": 22, "num_test": 10, "shape": [1, 8, 8], "num_classes": 3, "seed": 3},
}


def train_block(optimizer: dict[str, Any], schedule: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"epochs": 2, "batch_size": 8, "micro_batch": 3, "optimizer": optimizer, "schedule": schedule}


def assert_split_equals_unsplit(**changes: object) -> None:
    config = make_config(**changes)
    losses, weights, tests = train_unsplit(config)
    split_losses, state, split_tests = train_split(config)
    assert len(losses) == 6  # two epochs of 8 + 8 + 6 samples: the last batch of an epoch is smaller
    assert split_losses == losses
    assert split_tests == tests
    for name, tensor in state.weights.items():
        assert torch.equal(tensor, weights[name]), name
    trained = {name for name in weights if name in state.weights}
    assert trained == {name for name in weights if not name.startswith("unused")}


@pytest.mark.parametrize(
    "cut",
    [
        ["layer3"],
        ["layer2", "layer4"],
        ["layer1", "layer2", "layer3", "layer4"],
        ["layer1.0.bn1", "layer2.0.conv2", "layer3.1.relu"],
    ],
    ids=["two_stages", "three_stages", "five_stages", "inside_residual_blocks"],
)
def test_resnet18_with_batchnorm_and_momentum(cut: list[str]) -> None:
    assert_split_equals_unsplit(split={"cut": cut}, train=train_block(SGD))


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [(ADAM, None), (SGD, ONE_CYCLE), (ADAM, COSINE)],
    ids=["adam", "sgd_one_cycle_per_step", "adam_cosine_per_epoch"],
)
def test_optimizers_and_schedules(optimizer: dict[str, Any], schedule: dict[str, Any] | None) -> None:
    assert_split_equals_unsplit(split={"cut": ["layer2", "layer4"]}, train=train_block(optimizer, schedule))


@pytest.mark.parametrize(
    "cut",
    [["frozen"], ["act"], ["mix"], ["norm"], ["drop"], ["act", "mix", "drop", "head"]],
    ids="-".join,
)
def test_awkward_cuts(cut: list[str]) -> None:
    """Skips, in-place operations, plain numbers, frozen layers and dropout across the cut."""
    assert_split_equals_unsplit(
        model={"factory": "tests.unit.toys:Awkward"}, data=TOY_DATA, split={"cut": cut}, train=train_block(SGD)
    )


def test_a_module_that_returns_a_tuple() -> None:
    assert_split_equals_unsplit(
        model={"factory": "tests.unit.toys:Recurrent"}, data=TOY_DATA, split={"cut": ["head"]}, train=train_block(ADAM)
    )


def test_an_untraceable_sequential_between_its_children() -> None:
    assert_split_equals_unsplit(
        model={"factory": "tests.unit.toys:sequential"},
        data=TOY_DATA,
        split={"cut": ["2", "4"]},
        train=train_block(SGD),
    )


def test_a_leaf_module_is_kept_whole() -> None:
    assert_split_equals_unsplit(
        model={"factory": "tests.unit.toys:DataDependent"},
        data=TOY_DATA,
        split={"cut": ["head"], "leaf_modules": ["gate"]},
        train=train_block(SGD),
    )


def test_a_gradient_that_shares_memory_with_what_is_sent() -> None:
    assert_split_equals_unsplit(
        model={"factory": "tests.unit.toys:Aliasing"},
        data=TOY_DATA,
        split={"cut": ["marker", "last"]},
        train={**train_block(SGD), "micro_batch": 1, "in_flight": 4},
    )


def test_a_source_without_a_stage() -> None:
    assert_split_equals_unsplit(
        split={"cut": ["layer2", "layer4"]}, chain={"stage_at_source": False}, train=train_block(SGD)
    )


def test_inputs_whose_micro_batches_do_not_fill_whole_cache_lines() -> None:
    odd = {**TOY_DATA, "args": {**TOY_DATA["args"], "shape": [1, 7, 7]}}  # type: ignore[dict-item]
    for at_source in (True, False):
        assert_split_equals_unsplit(
            model={"factory": "tests.unit.toys:Awkward"},
            data=odd,
            split={"cut": ["norm"]},
            chain={"stage_at_source": at_source},
            train=train_block(SGD),
        )


def test_the_whole_model_at_the_sink() -> None:
    assert_split_equals_unsplit(split={"cut": []}, chain={"stage_at_source": False}, train=train_block(SGD))


@pytest.mark.parametrize("in_flight", [1, 2, 8])
def test_the_number_of_micro_batches_in_flight_changes_nothing(in_flight: int) -> None:
    assert_split_equals_unsplit(
        model={"factory": "tests.unit.toys:Awkward"},
        data=TOY_DATA,
        split={"cut": ["mix", "drop"]},
        train={**train_block(SGD), "micro_batch": 1, "in_flight": in_flight},
    )


def test_two_threads_per_stage() -> None:
    """The same thread count on both sides gives the same bits, whatever the count."""
    config = make_config(split={"cut": ["layer3"]}, train={**train_block(SGD), "epochs": 1})
    torch.set_num_threads(2)
    try:
        losses, weights, _ = train_unsplit(config, threads=2)
        split_losses, state, _ = train_split(config, threads=2)
    finally:
        torch.set_num_threads(1)
    assert split_losses == losses
    assert all(torch.equal(state.weights[name], weights[name]) for name in weights)


def test_channels_last_memory_crosses_a_cut() -> None:
    assert_split_equals_unsplit(
        model={"factory": "tests.unit.toys:ChannelsLast"}, data=TOY_DATA, split={"cut": ["b"]}, train=train_block(SGD)
    )


def test_a_tampered_gradient_is_noticed() -> None:
    """The comparison itself can fail: one micro-batch size apart gives other bits."""
    config = make_config(split={"cut": ["layer3"]}, train={**train_block(SGD), "epochs": 1})
    other = make_config(split={"cut": ["layer3"]}, train={**train_block(SGD), "epochs": 1, "micro_batch": 4})
    assert train_split(config)[0] != train_unsplit(other)[0]
