"""Runs the `msl` command as a user does, and looks at what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from msl.actors import runs, services

T = TypeVar("T")

MARK = "MSL_CLUSTER"
OWNER = {"MSL_TEST_OWNER": f"{os.getpid()}-{time.monotonic_ns()}"}
"""Inherited by all that these tests start, so that they look at nothing else that runs on the machine."""
os.environ.update(OWNER)
JOB: dict[str, Any] = {
    "name": "e2e",
    "model": {"factory": "msl.models.resnet:resnet18", "args": {"num_classes": 4, "in_channels": 1}},
    "data": {
        "factory": "msl.data.synthetic:random_images",
        "args": {"num_train": 44, "num_test": 12, "shape": [1, 32, 32], "num_classes": 4},
    },
    "fabric": "direct",
    "split": {"cut": ["layer2", "layer4"]},
    "train": {"epochs": 2, "batch_size": 8, "micro_batch": 4},
    "timeouts": {"silence_s": 8, "stop_s": 5},
}


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    output: str
    seconds: float

    @property
    def last_line(self) -> str:
        """What it said last."""
        return self.output.strip().splitlines()[-1]


def write_config(folder: Path, **changes: Any) -> Path:
    """The job with changed sections, as a file."""
    job = {key: dict(value) if isinstance(value, dict) else value for key, value in JOB.items()}
    for key, value in changes.items():
        job[key] = {**job.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start `msl`; output and errors go to one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "msl", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 120.0) -> Finished:
    """Wait for a started command; it is killed if it does not end in time."""
    begin = time.monotonic()
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"did not end within {timeout_s} s:\n{output}") from None
    return Finished(process.returncode, output, time.monotonic() - begin)


def msl(*arguments: str | Path, timeout_s: float = 120.0) -> Finished:
    """Run `msl` to its end."""
    return finish(start(*arguments), timeout_s)


def wait_until(condition: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """Poll until the condition gives something true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {timeout_s} s")


def members_of(run: Path, timeout_s: float = 90.0) -> dict[str, dict[str, Any]]:
    """The members of a run by name, once they are placed."""
    path = run / "placement.json"
    wait_until(path.exists, timeout_s, f"{path} is written")
    return {member["name"]: member for member in json.loads(path.read_text())["members"]}


def wait_for_steps(run: Path, process: subprocess.Popen[str]) -> dict[str, dict[str, Any]]:
    """Members of a run that is in the middle of its training: its first checkpoint is written."""
    members = members_of(run)

    def trained() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return any((run / "checkpoints").glob("epoch-*"))

    wait_until(trained, 90.0, "the first checkpoint")
    return members


def guard_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The process that ends a driver's cluster if the driver dies."""
    return next(
        child for child in psutil.Process(process.pid).children() if "msl.actors.guard" in " ".join(child.cmdline())
    )


def marked(of: set[int] | None = None) -> list[psutil.Process]:
    """Living processes of local clusters, but for those with the numbers in `of`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            ours = MARK in environment and OWNER.items() <= environment.items()
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return [process for process in found if of is None or process.pid not in of]


def abandoned_folders() -> set[Path]:
    """State folders of this user's local clusters that no living process belongs to."""
    folders = set(Path(f"/tmp/msl-{os.getuid()}").glob("*"))
    if services.running():
        folders.discard(services.records_folder())
    if runs.running():
        folders.discard(runs.records_folder())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            folders -= {folder for folder in folders if str(folder) in command}
    return folders


def namespaces(name: str) -> list[str]:
    """Network namespaces of the testbeds whose name begins so."""
    return sorted(path.name for path in Path("/run/netns").glob(f"msl-{name}*"))


@contextlib.contextmanager
def nothing_left(testbed: str = "e2e-none") -> Iterator[None]:
    """Fails if processes, folders or namespaces of clusters are there afterwards that were not before.

    Args:
        testbed: how the names of the testbeds begin that the body makes.
    """
    before = {process.pid for process in marked()}
    folders = abandoned_folders()
    yield
    assert namespaces(testbed) == []
    deadline = time.monotonic() + 3.0
    while (marked(before) or abandoned_folders() - folders) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = marked(before)
    assert not left, [process.cmdline()[:3] for process in left]
    assert abandoned_folders() - folders == set()
