"""What breaks a run ends it quickly, with one line that says where, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from msl.models.resnet import resnet18
from msl.pipeline.checkpoint import checkpoints, load
from tests.e2e.command import (
    Finished,
    finish,
    marked,
    msl,
    nothing_left,
    start,
    wait_for_steps,
    wait_until,
    write_config,
)

pytestmark = pytest.mark.cluster

ENDLESS = {"epochs": 10_000}
WITHIN_S = 10.0


def assert_intact(run: Path) -> None:
    """The last checkpoint can be read, and the summary says that the run did not complete."""
    newest = checkpoints(run / "checkpoints")[-1]
    load(newest, resnet18(num_classes=4, in_channels=1))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["completed"] is False
    assert summary["error"]


def assert_told(done: Finished, host: str, stage: str) -> None:
    """One line at the end that names host, stage and step."""
    assert done.code == 5, done.output
    assert done.seconds < WITHIN_S, done.output
    assert re.search(rf"^msl: host {host}, stage {stage}, step \d+: ", done.last_line), done.output
    assert "--resume" in done.last_line
    assert "Traceback" not in done.output


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster that is kept between the runs of this module."""
    name = f"test-{os.getpid()}"
    config = write_config(tmp_path_factory.mktemp("up"), cluster={"name": name})
    with nothing_left():
        up = msl("up", "--config", config)
        assert up.code == 0, up.output
        yield name
        down = msl("down", "--config", config)
        assert down.code == 0, down.output
        assert f"cluster '{name}' is down" in down.output


@pytest.mark.parametrize(("stage", "host"), [("source", "n0"), ("nsf1", "n1"), ("sink", "n2")])
def test_a_killed_member_ends_the_run(cluster: str, tmp_path: Path, stage: str, host: str) -> None:
    config = write_config(tmp_path, cluster={"name": cluster}, train=ENDLESS)
    run = tmp_path / "run"
    process = start("train", "--config", config, "--out", run)
    members = wait_for_steps(run, process)
    os.kill(members[stage]["pid"], signal.SIGKILL)
    done = finish(process)
    assert_told(done, host, stage)
    assert_intact(run)
    assert not any(psutil.pid_exists(member["pid"]) for member in members.values())


def test_a_member_that_hangs_is_noticed_by_its_silence(cluster: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, cluster={"name": cluster}, train=ENDLESS, timeouts={"silence_s": 3})
    run = tmp_path / "run"
    process = start("train", "--config", config, "--out", run)
    members = wait_for_steps(run, process)
    os.kill(members["nsf1"]["pid"], signal.SIGSTOP)
    try:
        done = finish(process)
    finally:
        for member in members.values():
            if psutil.pid_exists(member["pid"]):
                os.kill(member["pid"], signal.SIGCONT)
    assert done.code == 5, done.output
    assert "nsf1" in done.last_line
    assert "for 3 s" in done.last_line
    assert_intact(run)


def test_the_cluster_serves_the_next_run_after_a_broken_one(cluster: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, cluster={"name": cluster}, train={"epochs": 1})
    done = msl("train", "--config", config, "--out", tmp_path / "run")
    assert done.code == 0, done.output
    assert f"using the running cluster '{cluster}'" in done.output


def test_ctrl_c_ends_the_run_in_order(cluster: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, cluster={"name": cluster}, train=ENDLESS)
    run = tmp_path / "run"
    process = start("train", "--config", config, "--out", run)
    members = wait_for_steps(run, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # an impatient second one does not disturb the end
    done = finish(process)
    assert done.code == 130, done.output
    assert done.seconds < WITHIN_S
    assert done.last_line == "msl: stopped by SIGINT"
    assert_intact(run)
    wait_until(lambda: not any(psutil.pid_exists(m["pid"]) for m in members.values()), 5.0, "the actors end")


def test_a_loss_that_is_not_a_number_stops_the_run(cluster: str, tmp_path: Path) -> None:
    optimizer = {"factory": "torch.optim:SGD", "args": {"lr": 1e20}}
    config = write_config(tmp_path, cluster={"name": cluster}, train={"optimizer": optimizer})
    done = msl("train", "--config", config, "--out", tmp_path / "run")
    assert done.code == 5, done.output
    assert re.search(r"host n2, stage sink, step \d+, micro-batch \d+: the loss is (nan|inf)", done.last_line)
    assert "learning rate" in done.last_line


def test_status_shows_hosts_and_members(cluster: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, cluster={"name": cluster}, train=ENDLESS)
    process = start("train", "--config", config, "--out", tmp_path / "run")
    try:
        wait_for_steps(tmp_path / "run", process)
        shown = msl("status", "--config", config)
    finally:
        process.terminate()
        finish(process)
    assert shown.code == 0, shown.output
    rows = [line.split() for line in shown.output.splitlines()]
    for host, member in (("n0", "source"), ("n1", "nsf1"), ("n2", "sink")):
        row = next(cells for cells in rows if cells and cells[0] == host)
        assert row[1] == "alive"
        assert row[-1] == member


def test_metrics_are_readable_at_the_prometheus_port(cluster: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, cluster={"name": cluster}, train=ENDLESS)
    process = start("train", "--config", config, "--out", tmp_path / "run")
    try:
        members = wait_for_steps(tmp_path / "run", process)
        shown = msl("status", "--config", config)
        urls = re.findall(r"http://\S+", shown.output)
        assert len(urls) == 3

        def counted() -> str | None:
            text = scrape(members["nsf1"]["pid"], urls[1])
            return text if "msl_hop_bytes" in text and "msl_steps" in text else None

        text = wait_until(counted, 30.0, "the metrics appear")
    finally:
        process.terminate()
        finish(process)
    assert re.search(r'^ray_msl_steps(_total)?\{.*stage="nsf1".*\} [1-9]', text, re.MULTILINE), text[:2000]
    assert re.search(r'^ray_msl_hop_bytes(_total)?\{.*direction="in".*hop="previous".*\} [1-9]', text, re.MULTILINE)


def scrape(pid: int, url: str) -> str:
    """Fetch a page from within the network namespace of a process."""
    import subprocess
    import sys

    code = f"import urllib.request; print(urllib.request.urlopen('{url}', timeout=5).read().decode())"
    enter = ["nsenter", "--target", str(pid), "--net"]
    if os.getuid() != 0:
        enter += ["--user", "--preserve-credentials"]
    return subprocess.run([*enter, sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout


def test_up_twice_is_refused(cluster: str, tmp_path: Path) -> None:
    done = msl("up", "--config", write_config(tmp_path, cluster={"name": cluster}))
    assert done.code == 3
    assert "is up already" in done.last_line


def test_a_run_that_needs_other_hosts_is_refused(cluster: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, cluster={"name": cluster}, hosts=["n0", "elsewhere", "n2"])
    done = msl("train", "--config", config, "--out", tmp_path / "run")
    assert done.code == 3
    assert "not elsewhere" in done.last_line


@pytest.mark.parametrize(("stage", "host"), [("nsf1", "n1"), ("source", "n0")], ids=["nsf", "head"])
def test_a_killed_raylet_ends_the_run(tmp_path: Path, stage: str, host: str) -> None:
    run = tmp_path / "run"
    with nothing_left():
        process = start("train", "--config", write_config(tmp_path, train=ENDLESS), "--out", run)
        members = wait_for_steps(run, process)
        raylet = next(p for p in psutil.Process(members[stage]["pid"]).parents() if p.name() == "raylet")
        raylet.kill()
        done = finish(process)
    assert_told(done, host, stage)
    assert "raylet" in done.last_line
    assert_intact(run)


def test_ctrl_c_while_the_cluster_starts_leaves_nothing(tmp_path: Path) -> None:
    others = {process.pid for process in marked()}
    with nothing_left():
        process = start("train", "--config", write_config(tmp_path), "--out", tmp_path / "run")
        wait_until(lambda: marked(others), 30.0, "a raylet starts")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        done = finish(process, 20.0)
    assert done.code == 130, done.output
