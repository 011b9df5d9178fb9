"""Checkpoints: whole, by the unsplit model's names, and refused by name when they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from msl.errors import CheckpointError
from msl.pipeline.build import build_model
from msl.pipeline.checkpoint import Progress, checkpoints, initial_state, load, merge, save
from msl.pipeline.stage import StageState
from tests.chains import make_config, make_plan, open_chain, steps_of
from tests.unit import toys

SGD = {"factory": "torch.optim:SGD", "args": {"lr": 0.05, "momentum": 0.9}}
ADAM = {"factory": "torch.optim:Adam", "args": {"lr": 0.003}}
ONE_CYCLE = {
    "factory": "torch.optim.lr_scheduler:OneCycleLR",
    "args": {"max_lr": 0.01, "total_steps": "$total_steps"},
    "every": "step",
}
DATA = {
    "factory": "msl.data.synthetic:random_images",
    "args": {"num_train": 10, "num_test": 4, "shape": [1, 8, 8], "num_classes": 3},
}


def job(cut: list[str], optimizer: object, schedule: object = None, at_source: bool = True) -> object:
    return make_config(
        model={"factory": "tests.unit.toys:Awkward"},
        data=DATA,
        split={"cut": cut},
        chain={"stage_at_source": at_source},
        train={"epochs": 4, "batch_size": 4, "micro_batch": 2, "optimizer": optimizer, "schedule": schedule},
    )


def train(config: object, epochs: range, state: StageState, step: int) -> tuple[list[float], StageState]:
    """Losses, and the state after the last of the epochs."""
    losses: list[float] = []
    with open_chain(config, make_plan(config), state) as members:  # type: ignore[arg-type]
        for epoch in epochs:
            members[0].train_epoch(epoch, step)
            new = steps_of(members[0])
            step += len(new)
            losses += new
        states = [s for member in members if (s := member.state()) is not None]
        members[0].end()
    return losses, merge(state.weights, states)


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("schedule", [None, ONE_CYCLE], ids=["constant", "one_cycle"])
def test_resuming_under_another_cut_is_bit_identical(tmp_path: Path, optimizer: object, schedule: object) -> None:
    config = job(["mix"], optimizer, schedule)
    model = build_model(config)  # type: ignore[arg-type]
    whole, final = train(config, range(4), initial_state(model), 0)

    first, state = train(config, range(2), initial_state(model), 0)
    path = save(tmp_path, state, Progress(2, len(first), 0), keep=2)
    loaded, progress = load(path, model)
    other = job(["act", "norm", "head"], optimizer, schedule, at_source=False)
    second, resumed = train(other, range(progress.epoch, 4), loaded, progress.step)

    assert first + second == whole
    for name, tensor in final.weights.items():
        assert torch.equal(resumed.weights[name], tensor), name
    for name, kept in final.optimizer.items():
        for key, value in kept.items():
            assert torch.equal(torch.as_tensor(resumed.optimizer[name][key]), torch.as_tensor(value)), (name, key)


def saved(folder: Path, epoch: int = 1, keep: int = 2) -> Path:
    return save(folder, initial_state(toys.Awkward()), Progress(epoch, 5, 7, ({"epoch": epoch},)), keep)


def test_weights_load_straight_into_the_unsplit_model(tmp_path: Path) -> None:
    model = toys.Awkward()
    path = save(tmp_path, initial_state(model), Progress(1, 5, 0), keep=1)
    other = toys.Awkward()
    other.load_state_dict(load_file(path / "model.safetensors"))
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_position_seed_and_history_come_back(tmp_path: Path) -> None:
    _, progress = load(saved(tmp_path), toys.Awkward())
    assert progress == Progress(1, 5, 7, ({"epoch": 1},))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for epoch in range(1, 6):
        saved(tmp_path, epoch, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch-00004", "epoch-00005"]


def test_a_save_that_is_cut_off_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)

    def cut_off(_tensors: object, _path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("msl.pipeline.checkpoint.save_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch-00001"]
    load(checkpoints(tmp_path)[-1], toys.Awkward())


def test_what_a_cut_off_save_left_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("msl.pipeline.checkpoint.save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, 1)
    saved(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00002"]


def refusal(path: Path, model: torch.nn.Module | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, model or toys.Awkward())
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "training.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path)
    (path / name).unlink()
    assert name in refusal(path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "training.json"])
def test_half_a_file_is_refused(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: len(content) // 2])
    assert "damaged" in refusal(path)


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)
    assert "damaged" in refusal(path)


def test_a_foreign_document_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (path / "training.json").write_text(json.dumps({"format": "somebody-else-7"}))
    assert "foreign" in refusal(path)


def test_another_model_is_named_by_its_first_difference(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert "of another model: it has no 'lstm.weight_ih_l0'" in refusal(path, toys.Recurrent())
    assert "'stem.weight' is (4, 1, 3, 3)" in refusal(path, toys.Awkward(channels=6))


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "is no checkpoint" in refusal(tmp_path)


def test_tied_weights_survive(tmp_path: Path) -> None:
    model = toys.Tied()
    state, _ = load(save(tmp_path, initial_state(model), Progress(1, 1, 0), keep=1), toys.Tied())
    assert torch.equal(state.weights["first.weight"], model.first.weight)
    assert torch.equal(state.weights["second.weight"], model.first.weight)
