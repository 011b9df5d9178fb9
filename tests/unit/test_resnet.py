"""Claims about msl.models.resnet."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import fx, nn

from msl.models import ResNet, resnet18, resnet34, resnet50

Build = Callable[..., ResNet]

EVERY_DEPTH = pytest.mark.parametrize("build", [resnet18, resnet34, resnet50])


def batch_norm_entries(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for entry in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{entry}", (width,)
    yield f"{name}.num_batches_tracked", ()


def torchvision_entries(depths: tuple[int, ...], bottleneck: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes in the state_dict of torchvision's ResNets, in order."""
    yield "conv1.weight", (64, 3, 7, 7)
    yield from batch_norm_entries("bn1", 64)
    in_width = 64
    for layer, depth in enumerate(depths, start=1):
        planes = 32 * 2**layer
        out_width = planes * 4 if bottleneck else planes
        for index in range(depth):
            block = f"layer{layer}.{index}"
            if bottleneck:
                shapes = [
                    (planes, in_width, 1, 1),
                    (planes, planes, 3, 3),
                    (out_width, planes, 1, 1),
                ]
            else:
                shapes = [(planes, in_width, 3, 3), (planes, planes, 3, 3)]
            for number, shape in enumerate(shapes, start=1):
                yield f"{block}.conv{number}.weight", shape
                yield from batch_norm_entries(f"{block}.bn{number}", shape[0])
            if index == 0 and (layer > 1 or bottleneck):
                yield f"{block}.downsample.0.weight", (out_width, in_width, 1, 1)
                yield from batch_norm_entries(f"{block}.downsample.1", out_width)
            in_width = out_width
    yield "fc.weight", (1000, in_width)
    yield "fc.bias", (1000,)


@pytest.mark.parametrize(
    ("build", "depths", "bottleneck"),
    [
        (resnet18, (2, 2, 2, 2), False),
        (resnet34, (3, 4, 6, 3), False),
        (resnet50, (3, 4, 6, 3), True),
    ],
)
def test_state_dict_names_and_shapes_are_those_of_torchvision(
    build: Build, depths: tuple[int, ...], bottleneck: bool
) -> None:
    entries = [(name, tuple(t.shape)) for name, t in build().state_dict().items()]

    assert entries == list(torchvision_entries(depths, bottleneck))


@pytest.mark.parametrize(
    ("build", "num_parameters"),
    [(resnet18, 11_689_512), (resnet34, 21_797_672), (resnet50, 25_557_032)],
)
def test_parameter_count_is_the_published_one(build: Build, num_parameters: int) -> None:
    assert sum(p.numel() for p in build().parameters()) == num_parameters


def test_a_bottleneck_strides_in_its_3x3_convolution() -> None:
    block = resnet50().get_submodule("layer2.0")

    strides = [block.get_submodule(f"conv{i}").stride for i in (1, 2, 3)]

    assert strides == [(1, 1), (2, 2), (1, 1)]


@EVERY_DEPTH
def test_logits_have_one_column_for_each_class(build: Build) -> None:
    logits = build(num_classes=7)(torch.zeros(2, 3, 64, 64))

    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(("small_images", "side"), [(True, 32), (False, 8)])
def test_only_the_small_stem_keeps_the_resolution(small_images: bool, side: int) -> None:
    network = resnet18(small_images=small_images)

    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)

    assert stem(torch.zeros(1, 3, 32, 32)).shape == (1, 64, side, side)


@EVERY_DEPTH
def test_one_channel_changes_only_the_first_convolution(build: Build) -> None:
    grey = {n: t.shape for n, t in build(in_channels=1).state_dict().items()}
    colour = {n: t.shape for n, t in build().state_dict().items()}

    assert grey.pop("conv1.weight") == (64, 1, 7, 7)
    assert colour.pop("conv1.weight") == (64, 3, 7, 7)
    assert grey == colour


def test_one_channel_images_give_logits() -> None:
    network = resnet18(in_channels=1, num_classes=10, small_images=True)

    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("in_channels", [0, 2, 4])
def test_other_channel_counts_are_refused(in_channels: int) -> None:
    with pytest.raises(ValueError, match=f"1 or 3, not {in_channels}"):
        resnet18(in_channels=in_channels)


def test_zero_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        resnet18(num_classes=0)


@EVERY_DEPTH
@pytest.mark.parametrize("small_images", [False, True])
def test_fx_traces_the_network_without_changing_its_result(build: Build, small_images: bool) -> None:
    torch.manual_seed(0)
    network = build(num_classes=10, small_images=small_images).eval()
    images = torch.randn(2, 3, 32, 32)

    traced = fx.symbolic_trace(network)

    torch.testing.assert_close(traced(images), network(images), rtol=0, atol=0)


def test_every_parameter_receives_a_gradient() -> None:
    network = resnet50(num_classes=10)

    network(torch.randn(2, 3, 64, 64)).sum().backward()

    assert [n for n, p in network.named_parameters() if p.grad is None] == []


def test_convolutions_start_with_kaiming_fan_out_variance() -> None:
    torch.manual_seed(0)
    weight = resnet18().get_parameter("layer3.1.conv2.weight")

    std = (2 / (256 * 3 * 3)) ** 0.5

    assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=std / 100)


def test_one_seed_gives_one_initialisation() -> None:
    torch.manual_seed(5)
    first = resnet18().state_dict()
    torch.manual_seed(5)
    second = resnet18().state_dict()

    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("build", "last_norm"), [(resnet18, "bn2"), (resnet50, "bn3")])
def test_zero_init_residual_zeroes_the_last_norm_of_each_block(build: Build, last_norm: str) -> None:
    network = build(zero_init_residual=True)

    zeroed = {
        name.removesuffix(".weight")
        for name, parameter in network.named_parameters()
        if "bn" in name and name.endswith("weight") and not parameter.any()
    }

    blocks = {n for n, m in network.named_modules() if hasattr(m, "conv2")}
    assert zeroed == {f"{block}.{last_norm}" for block in blocks}
