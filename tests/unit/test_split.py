"""Cutting models: names, modes, and clear refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from msl.errors import ConfigError
from msl.models.resnet import resnet18
from msl.pipeline.split import split
from tests.unit import toys

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def run(stages: list[nn.Module], *inputs: torch.Tensor) -> torch.Tensor:
    values: object = inputs
    for stage in stages:
        values = stage(*values) if isinstance(values, tuple) else stage(values)
    assert isinstance(values, torch.Tensor)
    return values


def refusal(
    model: nn.Module, cut: list[str], example: torch.Tensor = IMAGES, leaf_modules: tuple[str, ...] = ()
) -> str:
    with pytest.raises(ConfigError) as caught:
        split(model, cut, (example,), leaf_modules)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_parameter_names_are_those_of_the_unsplit_model() -> None:
    model = resnet18(num_classes=10, in_channels=1)
    stages = split(model, ["layer1.1.bn1", "layer2.0.conv2", "layer4"], (torch.randn(2, 1, 32, 32),))
    names = [name for stage in stages for name in stage.state_dict()]
    assert sorted(names) == sorted(model.state_dict())


def test_stages_follow_train_and_eval_mode() -> None:
    model = toys.Awkward(dropout=0.5)
    stages = split(model, ["mix", "drop"], (IMAGES,))
    for stage in stages:
        stage.eval()
    expected = model.eval()(IMAGES.clone())
    assert torch.equal(run(stages, IMAGES.clone()), expected)
    assert torch.equal(run(stages, IMAGES.clone()), expected)  # no dropout in eval mode
    for stage in stages:
        stage.train()
    assert not torch.equal(run(stages, IMAGES.clone()), run(stages, IMAGES.clone()))


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_any_batch_size_passes_whatever_the_model_was_traced_with(samples: int) -> None:
    model = toys.Awkward().eval()
    images = torch.randn(samples, 1, 8, 8)
    stages = split(model, ["norm", "head"], (IMAGES,))
    assert torch.equal(run(stages, images.clone()), model(images.clone()))


def test_splitting_leaves_the_model_as_it_was() -> None:
    model = toys.Awkward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split(model, ["mix"], (IMAGES,))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_sequential_is_cut_between_children_without_tracing() -> None:
    stages = split(toys.sequential(), ["2", "4"], (IMAGES,))
    assert [list(dict(stage.named_children())) for stage in stages] == [["0", "1"], ["2", "3"], ["4"]]


def test_an_unknown_module_is_answered_with_those_that_exist() -> None:
    model = resnet18(num_classes=10)
    example = torch.randn(2, 3, 32, 32)
    assert "no module 'layer9' in ResNet; cuts are possible at conv1, bn1" in refusal(model, ["layer9"], example)
    assert "cuts are possible at layer3.0, layer3.1" in refusal(model, ["layer2", "layer3.7"], example)
    assert refusal(model, ["layer2", "layer3.7"], example).startswith("split.cut[1]: ")


def test_cuts_out_of_order_and_empty_stages_are_refused() -> None:
    model = resnet18(num_classes=10)
    example = torch.randn(2, 3, 32, 32)
    assert "in the order of the forward pass" in refusal(model, ["layer3", "layer2"], example)
    assert "leave no stage empty" in refusal(model, ["layer2", "layer2.0"], example)
    assert "the stage before it would be empty" in refusal(model, ["conv1"], example)
    assert "empty" in refusal(toys.Awkward(), ["stem"])  # only the size of the input is computed before it
    assert "empty stage" in refusal(toys.sequential(), ["0"])
    assert "empty stage" in refusal(toys.sequential(), ["3", "2"])


def test_a_module_that_the_forward_pass_never_enters_is_refused() -> None:
    assert "never enters 'unused'" in refusal(toys.Awkward(), ["unused"])


def test_shared_weights_cannot_be_cut_apart() -> None:
    message = refusal(toys.Tied(), ["second"], torch.randn(2, 4))
    assert "'first.weight' is used by stage 0 and by stage 1" in message


def test_an_untraceable_model_is_told_where_and_what_to_do() -> None:
    message = refusal(toys.DataDependent(), ["head"])
    assert "toys.py:" in message
    assert "if x.sum() > 0:" in message
    assert "split.leaf_modules" in message


def test_a_leaf_module_makes_it_traceable() -> None:
    model = toys.DataDependent()
    stages = split(model, ["head"], (IMAGES,), leaf_modules=("gate",))
    assert torch.equal(run(stages, IMAGES), model(IMAGES))


def test_an_unknown_leaf_module_is_refused() -> None:
    assert "split.leaf_modules[0]: no module 'door'" in refusal(toys.DataDependent(), ["head"], leaf_modules=("door",))


def test_functional_dropout_is_refused_because_its_mode_would_freeze() -> None:
    assert "torch.nn.functional.dropout" in refusal(toys.functional_dropout(), ["b"], torch.randn(2, 4))


def test_memory_that_is_changed_in_place_beyond_the_cut_is_not_separated() -> None:
    message = refusal(toys.Aliased(), ["act"])
    assert "share memory that 'act' changes in place" in message


def test_a_tuple_that_is_used_whole_cannot_cross() -> None:
    message = refusal(toys.TupleCrosses(), ["second"], torch.randn(2, 4))
    assert "a tuple" in message
    assert "only tensors and plain numbers can cross" in message


def test_a_model_that_does_not_fit_the_data_is_told_so() -> None:
    assert "does not run on a sample of the data" in refusal(resnet18(num_classes=10), ["layer2"], IMAGES)
