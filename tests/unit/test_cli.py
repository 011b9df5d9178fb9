"""The command line: what it teaches, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from msl.cli import main

JOB = {
    "model": {"factory": "msl.models.resnet:resnet18", "args": {"num_classes": 4, "in_channels": 1}},
    "data": {
        "factory": "msl.data.synthetic:random_images",
        "args": {"num_train": 8, "num_test": 4, "shape": [1, 32, 32], "num_classes": 4},
    },
    "split": {"cut": ["layer2", "layer4"]},
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(JOB))
    return path


def msl(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(result: Result, code: int = 2) -> str:
    """The one line of an error."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("msl: ")
    return lines[0]


@pytest.mark.parametrize("command", ["train", "plan", "up", "status", "down", "tensorboard", "bench"])
def test_every_command_is_listed_and_explains_itself(command: str) -> None:
    assert command in msl("--help").output
    shown = msl(command, "--help")
    assert shown.exit_code == 0
    assert len(shown.output.splitlines()) > 5


def test_plan_shows_stages_parameters_bytes_hosts_and_threads(job: Path) -> None:
    shown = msl("plan", "--config", job, "--set", "hosts=[{name: n0, cpus: 4}, n1, {name: n2, cpus: 2}]")
    assert shown.exit_code == 0, shown.output
    rows = [line.split() for line in shown.stdout.splitlines()]
    header = next(row for row in rows if row[:1] == ["hop"])
    source, nsf, sink = (next(row for row in rows if name in row) for name in ("source", "nsf1", "sink"))
    assert header[:5] == ["hop", "member", "host", "begins", "at"]
    assert source[:6] == ["0", "source", "n0", "input", "4", "151,232"]
    assert "16.0" in source  # KiB per sample: 64 channels of 8x8 float32
    assert nsf[:5] == ["1", "nsf1", "n1", "layer2", nsf[4]]
    assert sink[:5] == ["2", "sink", "n2", "layer4", "2"]


def test_a_missing_file_is_one_line() -> None:
    assert "nowhere.yaml: cannot be read: No such file" in refusal(msl("train", "--config", "nowhere.yaml"))


def test_a_misspelt_setting_is_answered_with_the_right_one(job: Path) -> None:
    line = refusal(msl("plan", "--config", job, "--set", "train.epoch=3"))
    assert "train.epoch: no such setting; did you mean 'epochs'?" in line


def test_a_cut_that_does_not_exist_is_told_before_anything_starts(job: Path) -> None:
    line = refusal(msl("plan", "--config", job, "--set", "split.cut=[layer2, layer9]"))
    assert "split.cut[1]: no module 'layer9'" in line
    assert "cuts are possible at" in line


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.factory=msl.models.resnet:resnet99", "no 'resnet99' in msl.models.resnet"),
        ("model.factory=nosuch.module:thing", "no module 'nosuch'"),
        ("model.args.in_channels=2", "in_channels"),
        ("train.optimizer={factory: 'torch.optim:SGD', args: {speed: 3}}", "unexpected keyword argument 'speed'"),
        ("train.optimizer={factory: 'torch.optim:LBFGS'}", "LBFGS evaluates the model within a step"),
        (
            "train.schedule={factory: 'torch.optim.lr_scheduler:ReduceLROnPlateau'}",
            "is not a schedule of torch.optim.lr_scheduler that depends on the number of steps alone",
        ),
        (
            "train.schedule={factory: 'torch.optim.lr_scheduler:OneCycleLR', args: {max_lr: 1, total_steps: $all}}",
            "unknown '$all'; there are: $total_steps, $steps_per_epoch, $epochs",
        ),
        ("train.loss={factory: 'torch.nn.functional:mse_loss'}", "train.loss"),
        ("data={factory: 'builtins:dict'}", "it must return msl.data.Splits"),
    ],
)
def test_what_cannot_be_made_is_named(job: Path, setting: str, told: str) -> None:
    assert told in refusal(msl("plan", "--config", job, "--set", setting))


def test_train_needs_a_configuration_or_a_run() -> None:
    result = msl("train")
    assert result.exit_code == 2
    assert "--config" in result.stderr


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path: Path) -> None:
    assert "no such folder" in refusal(msl("train", "--resume", tmp_path / "gone"))


def test_a_folder_with_a_run_is_not_overwritten(job: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    line = refusal(msl("train", "--config", job, "--out", tmp_path / "run"))
    assert "has a run in it already" in line


def test_tensorboard_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "no such folder" in refusal(msl("tensorboard", tmp_path / "gone"))


def test_up_has_nothing_to_start_on_an_existing_cluster(job: Path) -> None:
    line = refusal(msl("up", "--config", job, "--set", "cluster.address=10.0.0.1:6379", "--set", "hosts=[a, b, c]"), 3)
    assert "there is nothing to start" in line


def test_status_and_down_without_a_cluster(job: Path) -> None:
    name = "cluster.name=never-started"
    for command in ("status", "down"):
        result = msl(command, "--config", job, "--set", name)
        assert result.exit_code == 0
        assert "no cluster 'never-started' is running" in result.stdout


def test_the_network_is_entered_before_anything_that_starts_threads_is_imported() -> None:
    code = "import sys, msl.cli, msl.actors.network; print({'torch', 'ray', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
