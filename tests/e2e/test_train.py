"""`msl train` on a real multi-node cluster of its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from msl.config import load_config
from msl.models.resnet import resnet18
from tests.chains import train_unsplit
from tests.e2e.command import finish, guard_of, marked, members_of, msl, nothing_left, start, wait_until, write_config

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    with nothing_left():
        done = msl("train", "--config", write_config(folder), "--out", folder / "run")
    assert done.code == 0, done.output
    assert "source@n0 -> nsf1@n1 -> sink@n2 is open" in done.output
    assert "test accuracy" in done.output
    return folder / "run"


def test_the_summary_tells_what_was_run(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["completed"] is True
    assert summary["fabric"] == "direct"
    assert [(stage["name"], stage["host"]) for stage in summary["stages"]] == [
        ("source", "n0"),
        ("nsf1", "n1"),
        ("sink", "n2"),
    ]
    model = resnet18(num_classes=4, in_channels=1)
    assert sum(stage["parameters"] for stage in summary["stages"]) == sum(p.numel() for p in model.parameters())
    assert summary["steps"] == 12  # two epochs of 5 full batches and one of 4 samples
    assert [entry["epoch"] for entry in summary["epochs"]] == [1, 2]
    assert all(0 <= entry["test_accuracy"] <= 1 for entry in summary["epochs"])
    assert summary["samples_per_second"] > 0
    assert 0 < summary["step_ms"]["p50"] <= summary["step_ms"]["p95"]


def test_losses_and_weights_equal_the_unsplit_model(run: Path) -> None:
    config = load_config(run / "config.yaml")
    losses, weights, tests = train_unsplit(config)
    summary = json.loads((run / "summary.json").read_text())
    assert [entry["test_loss"] for entry in summary["epochs"]] == tests
    trained = load_file(run / "checkpoints" / "epoch-00002" / "model.safetensors")
    assert trained.keys() == weights.keys()
    assert all(torch.equal(trained[name], weights[name]) for name in weights)
    events = EventAccumulator(str(run)).Reload()
    assert [event.value for event in events.Scalars("loss/train")] == pytest.approx(losses, rel=1e-6)


def test_tensorboard_shows_learning_stages_hops_plan_and_hparams(run: Path) -> None:
    events = EventAccumulator(str(run)).Reload()
    scalars = set(events.Tags()["scalars"])
    for tag in ("loss/train", "accuracy/train", "learning_rate/learning_rate", "speed/samples_per_second", "loss/test"):
        assert tag in scalars
    for stage in ("source", "nsf1", "sink"):
        for time in ("forward_ms", "backward_ms", "receive_wait_ms", "send_ms"):
            values = [event.value for event in events.Scalars(f"stage_{time}/{stage}")]
            assert len(values) == 12
            assert all(math.isfinite(value) and value >= 0 for value in values)
    sent = [event.value for event in events.Scalars("traffic_bytes_out/source_next")]
    received = [event.value for event in events.Scalars("traffic_bytes_in/nsf1_previous")]
    assert sent == sorted(sent)
    # Pings and control frames aside, what the source sends is what the first NSF receives.
    assert received[-1] == pytest.approx(sent[-1], rel=0.01)
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.summary_metadata)
    assert "nsf1" in events.Tensors("plan/text_summary")[0].tensor_proto.string_val[0].decode()


def test_resuming_under_another_cut_and_number_of_stages_is_bit_identical(run: Path, tmp_path: Path) -> None:
    once = msl("train", "--config", run / "config.yaml", "--set", "train.epochs=1", "--out", tmp_path / "run")
    assert once.code == 0, once.output
    cuts = ("--set", "split.cut=[layer1.1, layer2.0.conv2, layer4]", "--set", "train.epochs=2")
    again = msl("train", "--resume", tmp_path / "run", *cuts)
    assert again.code == 0, again.output
    assert "resuming after epoch 1" in again.output
    whole = load_file(run / "checkpoints" / "epoch-00002" / "model.safetensors")
    resumed = load_file(tmp_path / "run" / "checkpoints" / "epoch-00002" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [entry["epoch"] for entry in summary["epochs"]] == [1, 2]
    assert len(summary["stages"]) == 4


def test_a_path_with_a_space_does_no_harm(tmp_path: Path) -> None:
    spaced = tmp_path / "with space"
    spaced.mkdir()
    (spaced / "venv").symlink_to(sys.prefix)
    config = write_config(spaced, train={"epochs": 1})
    command = [spaced / "venv" / "bin" / "python", "-m", "msl", "train", "--config", config, "--out", spaced / "run"]
    with nothing_left():
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, cwd=spaced)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_member_runs_on_its_host_and_nothing_can_be_reached_from_outside(tmp_path: Path) -> None:
    config = write_config(tmp_path, train={"epochs": 500}, checkpoint={"every": 500})
    others = {process.pid for process in marked()}
    with nothing_left():
        process = start("train", "--config", config, "--out", tmp_path / "run")
        try:
            members = members_of(tmp_path / "run")
            for name, member in members.items():
                raylets = [p for p in psutil.Process(member["pid"]).parents() if p.name() == "raylet"]
                assert len(raylets) == 1, name
                assert f"--node-name={member['host']}" in " ".join(raylets[0].cmdline()), name
            assert len({member["ray_node"] for member in members.values()}) == len(members)
            for owned in [psutil.Process(process.pid), *marked(others)]:
                assert interfaces_of(owned.pid) == ["lo"], owned.cmdline()[:3]
        finally:
            process.terminate()
            done = finish(process, 20.0)
    assert done.code == 130
    assert done.last_line.endswith("stopped by SIGTERM")


def interfaces_of(pid: int) -> list[str]:
    """Network interfaces in the namespace of a process."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    return [line.partition(":")[0].strip() for line in lines]


def test_a_driver_that_is_killed_takes_its_cluster_with_it(tmp_path: Path) -> None:
    config = write_config(tmp_path, train={"epochs": 500}, checkpoint={"every": 500})
    process = start("train", "--config", config, "--out", tmp_path / "run")
    members = members_of(tmp_path / "run")
    guard = guard_of(process)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(psutil.pid_exists(m["pid"]) for m in members.values()), 20.0, "the members end")
    wait_until(lambda: not guard.is_running(), 20.0, "the guard has done its work")
    with nothing_left():
        pass
    cleaned = msl("down")
    assert cleaned.code == 0
    assert "crashed cluster" not in cleaned.output
