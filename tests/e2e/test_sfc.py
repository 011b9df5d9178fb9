"""Training over the SFC fabric: the same bits as ever, the same endings, and nothing left of the testbed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from msl.config import load_config
from msl.net.requirements import first_lack
from tests.chains import train_unsplit
from tests.e2e.command import (
    finish,
    guard_of,
    members_of,
    msl,
    namespaces,
    nothing_left,
    start,
    wait_for_steps,
    wait_until,
    write_config,
)

LACK = first_lack()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.root,
    pytest.mark.skipif(LACK is not None, reason=f"the fabric sfc cannot be had here: {LACK and LACK.need}"),
]

ENDLESS = {"epochs": 10_000}
NAME = f"sfc{os.getpid()}"


def sfc_config(folder: Path, **changes: Any) -> Path:
    return write_config(folder, **{"fabric": "sfc", "cluster": {"name": NAME}, **changes})


def summary_of(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def assert_like_unsplit(run: Path) -> None:
    """Losses, weights and test losses are those of the unsplit model, bit for bit."""
    _, weights, tests = train_unsplit(load_config(run / "config.yaml"))
    assert [entry["test_loss"] for entry in summary_of(run)["epochs"]] == tests
    trained = load_file(run / "checkpoints" / "epoch-00002" / "model.safetensors")
    assert trained.keys() == weights.keys()
    assert all(torch.equal(trained[name], weights[name]) for name in weights)


def test_training_is_bit_identical_to_the_unsplit_model_and_so_to_direct(tmp_path: Path) -> None:
    with nothing_left(NAME):
        done = msl("train", "--config", sfc_config(tmp_path, fabric="auto"), "--out", tmp_path / "run")
    assert done.code == 0, done.output
    assert "fabric sfc: SRv6 segment lists" in done.output
    assert "source@n0 -> nsf1@n1 -> sink@n2 is open" in done.output
    assert summary_of(tmp_path / "run")["fabric"] == "sfc"
    assert_like_unsplit(tmp_path / "run")
    tags = EventAccumulator(str(tmp_path / "run")).Reload().Tags()["scalars"]
    for host in ("n0", "n1", "n2"):
        assert {f"sfc_drops/{host}", f"sfc_flows/{host}", f"sfc_link_bytes_out/{host}_fab1"} <= set(tags)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A testbed of four hosts that is kept between the runs of this module; its configuration."""
    config = sfc_config(tmp_path_factory.mktemp("up"), hosts=["n0", "n1", "n2", "n3"], chain={"nsfs": ["n1"]})
    with nothing_left(NAME):
        up = msl("up", "--config", config)
        assert up.code == 0, up.output
        yield config
        down = msl("down", "--config", config)
        assert down.code == 0, down.output


def test_status_shows_hosts_sids_links_and_that_nothing_was_dropped(kept: Path) -> None:
    shown = msl("status", "--config", kept)
    assert shown.code == 0, shown.output
    for host in range(1, 5):
        assert f"fd00:6d73:6c:{host}:2::" in shown.output
    assert shown.output.count("10000 Mbit/s") == 8
    assert "chains: none" in shown.output
    assert "packets dropped by the proxies: none" in shown.output


def test_several_chains_share_the_hosts_and_compute_the_same_bits(kept: Path, tmp_path: Path) -> None:
    """Two runs at once: one through n1 twice by way of the second plane, one through n2 and n1."""
    cuts = {"split": {"cut": ["layer2", "layer3", "layer4"]}, "hosts": ["n0", "n1", "n2", "n3"]}
    chains = [
        {**cuts, "chain": {"nsfs": ["n1", "n1"]}, "sr": {"via": "r2"}},
        {**cuts, "chain": {"source": "n3", "nsfs": ["n2", "n1"], "sink": "n0"}},
    ]
    processes = []
    for index, chain in enumerate(chains):
        folder = tmp_path / str(index)
        folder.mkdir()
        processes.append(start("train", "--config", sfc_config(folder, **chain), "--out", folder / "run"))
    for process in processes:
        done = finish(process)
        assert done.code == 0, done.output
    plans = [(tmp_path / str(index) / "run" / "plan.txt").read_text() for index in range(len(chains))]
    members = [re.findall(r"\((\S+)\)", plan.split("segments ")[1]) for plan in plans]
    assert members[0] == ["waypoint", "nsf1@n1", "waypoint", "nsf2@n1", "waypoint", "sink@n3"]
    assert members[1] == ["nsf1@n2", "nsf2@n1", "sink@n0"]
    assert len({re.search(r"chain (\d+)", plan)[1] for plan in plans}) == 2  # type: ignore[index]
    for index in range(len(chains)):
        assert_like_unsplit(tmp_path / str(index) / "run")
    after = msl("status", "--config", kept)
    assert "chains: none" in after.output
    assert "packets dropped by the proxies: none" in after.output, after.output


def test_a_killed_nsf_ends_the_run_as_on_direct(kept: Path, tmp_path: Path) -> None:
    config = sfc_config(tmp_path, train=ENDLESS)
    process = start("train", "--config", config, "--out", tmp_path / "run")
    members = wait_for_steps(tmp_path / "run", process)
    os.kill(members["nsf1"]["pid"], signal.SIGKILL)
    done = finish(process)
    assert done.code == 5, done.output
    assert re.search(r"^msl: host n1, stage nsf1, step \d+: the stage died", done.last_line), done.output
    assert "--resume" in done.last_line
    assert "chains: none" in msl("status", "--config", kept).output


def test_a_run_on_the_same_testbed_may_be_direct(kept: Path, tmp_path: Path) -> None:
    done = msl("train", "--config", sfc_config(tmp_path, fabric="direct"), "--out", tmp_path / "run")
    assert done.code == 0, done.output
    assert summary_of(tmp_path / "run")["fabric"] == "direct"
    assert_like_unsplit(tmp_path / "run")


def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    config = sfc_config(tmp_path, cluster={"name": f"{NAME}i"}, train=ENDLESS)
    with nothing_left(f"{NAME}i"):
        process = start("train", "--config", config, "--out", tmp_path / "run")
        try:
            members_of(tmp_path / "run")
        finally:
            process.send_signal(signal.SIGINT)
        done = finish(process, 30.0)
    assert done.code == 130, done.output


def test_killed_it_leaves_nothing(tmp_path: Path) -> None:
    config = sfc_config(tmp_path, cluster={"name": f"{NAME}g"}, train=ENDLESS)
    with nothing_left(f"{NAME}g"):
        process = start("train", "--config", config, "--out", tmp_path / "run")
        members_of(tmp_path / "run")
        process.kill()
        process.communicate()
        wait_until(lambda: not namespaces(f"{NAME}g"), 20.0, "the namespaces are removed")


def test_killed_together_with_its_guard_it_leaves_what_down_removes(tmp_path: Path) -> None:
    config = sfc_config(tmp_path, cluster={"name": f"{NAME}k"}, train=ENDLESS)
    with nothing_left(f"{NAME}k"):
        process = start("train", "--config", config, "--out", tmp_path / "run")
        members = members_of(tmp_path / "run")
        guard_of(process).kill()
        process.kill()
        process.communicate()
        wait_until(lambda: not any(psutil.pid_exists(m["pid"]) for m in members.values()), 20.0, "the members end")
        assert namespaces(f"{NAME}k")
        foreign = f"msl-{NAME}k-mine"
        subprocess.run(["ip", "netns", "add", foreign], check=True)
        try:
            down = msl("down", "--config", config)
            assert down.code == 0, down.output
            assert "crashed cluster" in down.output
            assert namespaces(f"{NAME}k") == [foreign]
        finally:
            subprocess.run(["ip", "netns", "del", foreign], check=True)


def test_without_the_right_to_it_auto_takes_direct_and_says_why(tmp_path: Path) -> None:
    config = sfc_config(tmp_path, fabric="auto", cluster={"name": f"{NAME}u"}, train={"epochs": 1})
    unprivileged = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    command = [*unprivileged, sys.executable, "-m", "msl", "train", "--config", config, "--out", tmp_path / "run"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"fabric direct: plain TCP, because .*CAP_NET_ADMIN", done.stdout), done.stdout
    assert summary_of(tmp_path / "run")["fabric"] == "direct"
    refused = [*command[:-1], tmp_path / "other", "--set", "fabric=sfc"]
    done = subprocess.run(list(map(str, refused)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"msl: fabric: sfc: .*CAP_NET_ADMIN.*\n", done.stderr), done.stderr


def test_source_and_nsf_on_one_host_are_refused_with_the_way_out(tmp_path: Path) -> None:
    config = sfc_config(tmp_path, hosts=["n0", "n1"], chain={"source": "n0", "nsfs": ["n0"], "sink": "n1"})
    done = msl("train", "--config", config)
    assert done.code == 2
    assert "needs a host of its own" in done.last_line
