"""A trained model as a service, as a user starts, asks and ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from msl.config import load_config
from msl.pipeline.build import build_model
from tests.e2e.command import finish, marked, msl, nothing_left, start, wait_until, write_config

NAME = f"serve{os.getpid()}"
RECORD = Path(f"/tmp/msl-{os.getuid()}/services/e2e-serve.json")
PLAIN_CLIENT = Path(__file__).resolve().parents[2] / "examples" / "plain_client.py"
pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FABRICS = [
    "direct",
    pytest.param(
        "sfc",
        marks=[pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces")],
    ),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages with a checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, name="e2e-serve", cluster={"name": NAME}, train={"epochs": 1})
    done = msl("train", "--config", config, "--out", folder / "run")
    assert done.code == 0, done.output
    return folder / "run"


def accuracy(run: Path) -> float:
    return float(json.loads((run / "summary.json").read_text())["epochs"][-1]["test_accuracy"])


@contextmanager
def service(run: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`msl serve` in the foreground, ready; ended with SIGINT."""
    process = start("serve", "--checkpoint", run, *options)
    try:

        def ready() -> bool:
            assert process.poll() is None, process.communicate()[0]
            return RECORD.exists()

        wait_until(ready, 90.0, "the service is ready")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)


def ask_plainly(path: Path) -> np.ndarray[Any, Any]:
    """What examples/plain_client.py is answered, in the network of the source's host."""
    record = json.loads(RECORD.read_text())
    inside = ["nsenter", f"--net=/proc/{record['enter']}/ns/net"] if os.geteuid() == 0 else []
    asked = [sys.executable, PLAIN_CLIENT, record["address"], str(record["port"]), "e2e-serve", "--save", path]
    subprocess.run([*inside, *asked], check=True, timeout=60, capture_output=True)
    outputs: np.ndarray[Any, Any] = np.load(path)
    return outputs


def unsplit_outputs(run: Path) -> np.ndarray[Any, Any]:
    """What the unsplit model makes of the plain client's samples."""
    model = build_model(load_config(run / "config.yaml"))
    model.load_state_dict(load_file(run / "checkpoints" / "epoch-00001" / "model.safetensors"))
    samples = np.random.default_rng(0).normal(size=(4, 1, 32, 32)).astype(np.float32)
    torch.set_num_threads(1)
    with torch.inference_mode():
        outputs: np.ndarray[Any, Any] = model.eval()(torch.from_numpy(samples)).numpy()
    return outputs


@pytest.mark.parametrize("fabric", FABRICS)
def test_the_accuracy_over_the_chain_is_the_runs(trained: Path, fabric: str) -> None:
    with nothing_left(NAME):
        with service(trained, "--set", f"fabric={fabric}") as process:
            asked = msl("infer", "--dataset", "test", "--batch", "5", "--trace")
            shown = msl("status")
            plain = ask_plainly(trained / f"outputs-{fabric}.npy")
        ended = finish(process, 40)
    assert asked.code == 0, asked.output
    found = re.search(r"accuracy ([0-9.]+)% \((\d+) of 12\)", asked.output)
    assert found, asked.output
    assert int(found[2]) == round(accuracy(trained) * 12)
    assert "compute" in asked.output
    assert "service 'e2e-serve' at [" in shown.output
    assert ended.code == 130, ended.output
    assert f"fabric {fabric}" in ended.output
    assert np.array_equal(plain, unsplit_outputs(trained))


def test_a_detached_service_stays_until_down(trained: Path) -> None:
    with nothing_left(NAME):
        begun = msl("serve", "--checkpoint", trained, "--detach")
        try:
            assert begun.code == 0, begun.output
            assert "is ready at [" in begun.last_line
            second = msl("serve", "--checkpoint", trained)
            assert second.code == 3
            assert re.fullmatch(
                r"msl: the service 'e2e-serve' runs already \(process \d+\); 'msl down' ends it", second.last_line
            )
            picture = trained / "predictions.png"
            asked = msl("infer", "--dataset", "test", "--limit", "3", "--picture", picture)
            assert asked.code == 0, asked.output
            assert picture.read_bytes().startswith(b"\x89PNG")
        finally:
            ended = msl("down")
    assert "service 'e2e-serve' is down" in ended.output


def test_a_killed_nsf_ends_the_service_with_one_line(trained: Path) -> None:
    with nothing_left(NAME), service(trained) as process:
        victim = next(one for one in marked() if one.name().startswith("ray::ServingActor"))
        victim.kill()
        ended = finish(process, 40)
    assert ended.code == 5, ended.output
    assert re.fullmatch(r"msl: host n[12], stage (nsf1|nsf2|sink): its process is gone", ended.last_line), ended.output


def test_without_a_service_infer_says_what_to_do() -> None:
    asked = msl("infer", "--dataset", "test")
    assert asked.code == 3
    assert asked.last_line == "msl: no service is running; start one with: msl serve --checkpoint RUN"


def test_a_chain_that_trains_answers_with_its_latest_complete_step(tmp_path: Path) -> None:
    config = write_config(tmp_path, name="e2e-serve", cluster={"name": NAME}, train={"epochs": 40})
    with nothing_left(NAME):
        process = start("train", "--config", config, "--out", tmp_path / "run", "--serve")
        wait_until(RECORD.exists, 90.0, "the gate is open")
        first = msl("infer", "--dataset", "test", "--batch", "4")
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        ended = finish(process, 40)
    assert first.code == 0, first.output
    assert "accuracy" in first.output
    assert ended.code == 130, ended.output
