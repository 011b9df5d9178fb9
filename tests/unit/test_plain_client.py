"""The example that knows the protocol and nothing of msl, as a program of its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from msl.client import Client
from msl.plan import InputSpec
from tests.unit.services import Address, Stages, serve, serving

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "plain_client.py"


def run(address: Address, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PROGRAM, address[0], str(address[1]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # type: ignore[arg-type]


def test_it_gets_the_same_bytes_as_the_client(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    np.save(tmp_path / "samples.npy", samples)
    with serving(Stages(3)) as (address, _):
        done = run(address, "toy", tmp_path / "samples.npy", "--save", tmp_path / "outputs.npy")
        assert done.returncode == 0, done.stderr
        with Client(address, "toy") as client:
            expected = client.predict(samples)
    outputs = np.load(tmp_path / "outputs.npy")
    assert (outputs.dtype, outputs.shape) == (expected.dtype, expected.shape)
    assert outputs.tobytes() == expected.tobytes()
    path, *lines = done.stdout.splitlines()
    assert path == "path: nsf1 on n1 -> nsf2 on n2 -> nsf3 on n3"
    probabilities, classes = torch.from_numpy(expected).softmax(1).max(1)
    assert lines == [
        f"sample {index}: class {label}, probability {probability:.3f}"
        for index, (label, probability) in enumerate(zip(classes.tolist(), probabilities.tolist(), strict=True))
    ]


def test_without_samples_it_makes_some_of_the_shape_that_the_service_tells() -> None:
    with serve([torch.nn.Flatten()], InputSpec((2, 3), "float64")) as (address, services):
        done = run(address, "toy")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 5
        assert services[0].report().counters.samples == 4


def test_a_refusal_is_told_in_one_line() -> None:
    with serving(Stages(1)) as (address, _):
        done = run(address, "toys")
    assert done.returncode == 1
    assert done.stderr == "refused: the HELLO is for service 'toys', not 'toy'\n"


def test_it_imports_nothing_of_msl() -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(PROGRAM.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert imported == {"argparse", "json", "socket", "struct", "numpy"}
