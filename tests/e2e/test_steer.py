"""`msl steer` and `msl topology` on a run that trains, and a controller that leads it away from a dead plane."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from msl.actors import local, runs
from msl.net.faults import fault
from msl.net.requirements import first_lack
from msl.net.testbed import Testbed, TestbedHost
from tests.e2e.command import finish, msl, nothing_left, start, wait_for_steps, wait_until, write_config

LACK = first_lack()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(LACK is not None, reason=f"the fabric sfc cannot be had here: {LACK and LACK.need}"),
]

NAME = f"steer{os.getpid()}"
ENDLESS = {"epochs": 10_000}


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A run in the middle of its training, with a controller; ended with Ctrl-C."""
    folder = tmp_path_factory.mktemp("steer")
    config = write_config(
        folder,
        fabric="sfc",
        cluster={"name": NAME},
        train=ENDLESS,
        steering={"policy": "least-loaded", "record": True},
    )
    with nothing_left(NAME):
        process = start("train", "--config", config, "--out", folder / "run")
        try:
            wait_for_steps(folder / "run", process)
            yield folder / "run", process
        finally:
            process.send_signal(signal.SIGINT)
            done = finish(process)
        assert done.code == 130, done.output


def test_the_path_is_shown_changed_and_released(training: tuple[Path, subprocess.Popen[str]]) -> None:
    run, process = training
    shown = msl("steer", run)
    assert shown.code == 0, shown.output
    assert "source@n0 -> nsf1@n1 -> sink@n2" in shown.output
    assert "steered by" in shown.output
    assert "(least-loaded)" in shown.output
    changed = msl("steer", run, "--via", "plane2")
    assert changed.code == 0, changed.output
    assert "was  source@n0 -> nsf1@n1 -> sink@n2" in changed.output
    assert "is   source@n0 -> r2 -> nsf1@n1 -> r2 -> sink@n2" in changed.output
    assert "the first packet took it after" in changed.output
    one = msl("steer", run, "--via", "none", "--hop", "nsf1:sink", "--direction", "backward")
    assert one.code == 0, one.output
    assert "(nsf1:sink back as the routes lead)" in one.output
    again = msl("steer", run, "--via", "none", "--hop", "nsf1:sink", "--direction", "backward")
    assert "the path is that already" in again.output
    held = msl("steer", run)
    assert "held by hand" in held.output
    assert "by hand: --via plane2" in held.output
    released = msl("steer", run, "--release")
    assert "the controller may change the path again" in released.output
    assert process.poll() is None, "the run goes on"


@pytest.mark.parametrize(
    ("options", "wording"),
    [
        (["--via", "r9"], "--via r9: no router 'r9'; there are r1, r2, and 'none' for as the routes lead"),
        (["--via", "r1", "--hop", "nsf1:nsf2"], "--hop nsf1:nsf2: no such hop; there are source:nsf1, nsf1:sink"),
        (["--hop", "source:nsf1"], "--hop and --direction go with --via"),
        (["--segments", "fd00::1"], "segment fd00::1: neither a router's SID nor the chain's next one"),
        (["--segments", "x"], "--segments x: "),
        (["--via", ",".join(["r1"] * 11)], "is longer than sr.max_segments (12)"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_what_cannot_be_a_path_is_refused_in_one_line(
    training: tuple[Path, subprocess.Popen[str]], options: list[str], wording: str
) -> None:
    done = msl("steer", training[0], *options)
    assert done.code != 0
    assert wording in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_another_run_is_not_found_and_the_running_one_is_named(training: tuple[Path, subprocess.Popen[str]]) -> None:
    done = msl("steer", "runs/no-such-run", "--via", "r1")
    assert done.code != 0
    assert "no running chain 'runs/no-such-run' over the fabric sfc; there are: " in done.output
    assert str(training[0]) in done.output


def test_the_topology_is_shown_and_drawn(training: tuple[Path, subprocess.Popen[str]], tmp_path: Path) -> None:
    done = msl("topology", training[0], "--out", tmp_path / "chain.svg")
    assert done.code == 0, done.output
    for link in ("n0 -> r1", "n1 -> r2", "n2 -> r1"):
        assert link in done.output
    picture = (tmp_path / "chain.svg").read_text()
    assert picture.startswith("<svg")
    assert "Mbit/s" in picture
    wrong = msl("topology", training[0], "--out", tmp_path / "chain.png")
    assert "the picture is an SVG" in wrong.output


def test_a_dead_plane_is_left_and_the_training_goes_on(training: tuple[Path, subprocess.Popen[str]]) -> None:
    run, process = training
    assert msl("steer", run, "--via", "none").code == 0
    assert msl("steer", run, "--release").code == 0
    checkpoints = len(list((run / "checkpoints").glob("epoch-*")))
    assert checkpoints
    newest = _newest(run)
    with fault(_testbed(), "r1", "black_hole", 0):
        shown = wait_until(
            lambda: done if "have no answer" in (done := msl("steer", run).output) else None, 30.0, "the path changes"
        )
        assert "-> r2 -> nsf1@n1 -> r2 -> sink@n2" in shown
        wait_until(lambda: _newest(run) > newest or None, 60.0, "the training goes on over the other plane")
    assert process.poll() is None


def test_the_run_tells_of_its_steering(training: tuple[Path, subprocess.Popen[str]]) -> None:
    """The last test of the module: ends nothing, reads what the others have caused."""
    run, _ = training
    deadline = time.monotonic() + 30.0
    wanted = {"link_load/n0_r1_out", "link_load/n2_r2_in", "path_changes/count", "hop_retransmitted/hop0_forward"}
    while True:
        tags = EventAccumulator(str(run)).Reload().Tags()
        if wanted <= set(tags["scalars"]) and "path/text_summary" in tags["tensors"]:
            break
        assert time.monotonic() < deadline, wanted - set(tags["scalars"])
        time.sleep(1.0)
    replayed = msl("steer", "--replay", run / "telemetry.jsonl")
    assert replayed.code == 0, replayed.output
    assert " 0 differ from those recorded" in replayed.output


def _newest(run: Path) -> int:
    return max(int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("epoch-*"))


def _testbed() -> Testbed:
    """The testbed of the only run."""
    cluster = local.find(runs.find(None).cluster)
    assert cluster is not None
    hosts = tuple(TestbedHost(host.name, host.netns or "", host.address, host.interfaces) for host in cluster.hosts)
    domain = cluster.domain()
    routers = tuple((router.name, f"msl-{cluster.name}-{router.name}") for router in domain.routers)
    return Testbed(cluster.name, hosts, routers, tuple(str(host.locator) for host in domain.hosts))


def test_summary_lists_the_changes_of_path(tmp_path: Path) -> None:
    config = write_config(tmp_path, fabric="sfc", cluster={"name": f"{NAME}b"}, steering={"policy": "latency"})
    with nothing_left(f"{NAME}b"):
        done = msl("train", "--config", config, "--out", tmp_path / "run")
    assert done.code == 0, done.output
    summary: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert isinstance(summary["path_changes"], list)
