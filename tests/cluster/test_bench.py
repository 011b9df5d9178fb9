"""`msl bench` as a user runs it, on its cluster of several raylets, with as little as it takes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import finish, msl, nothing_left, start, write_config

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

WAYS = {"link", "raw", "ray", "ray_numpy", "ray_same_raylet", "ray_numpy_same_raylet"}


def results(folder: Path, plot: str) -> tuple[list[dict[str, str]], str, dict[str, Any]]:
    """The samples, the page and the summary of a finished benchmark."""
    assert {path.name for path in folder.iterdir()} == {"results.csv", "results.md", "summary.json", plot}
    assert (folder / plot).read_bytes().startswith(b"\x89PNG")
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, (folder / "results.md").read_text(), json.loads((folder / "summary.json").read_text())


def test_link_measures_all_ways_at_all_sizes(tmp_path: Path) -> None:
    with nothing_left():
        run = msl("bench", "link", "--sizes", "64KiB,1MiB", "--rounds", "1", "--out", tmp_path / "out")
    assert run.code == 0, run.output
    assert run.seconds < 60
    rows, page, summary = results(tmp_path / "out", "rates.png")
    assert sorted((row["case"], row["side"]) for row in rows) == sorted((c, w) for c in ("64kib", "1mib") for w in WAYS)
    for row in rows:
        assert float(row["rate_mib_s"]) == pytest.approx(
            int(row["messages"]) * int(row["bytes"]) / 2**20 / float(row["seconds"])
        )
    rate = {row["side"]: float(row["rate_mib_s"]) for row in rows if row["case"] == "1mib"}
    for way in WAYS - {"link"}:
        assert summary[f"link_over_{way}_1mib"] == pytest.approx(rate["link"] / rate[way])
        assert summary[f"link_over_{way}_64kib"] > 0
    assert "msl bench link --sizes 64KiB,1MiB --rounds 1" in page
    assert all(f"| {name} |" in page for name in ("CPU", "kernel", "Python", "torch", "Ray"))


def test_train_compares_chain_and_unsplit_model_bit_for_bit(tmp_path: Path) -> None:
    config = write_config(tmp_path, hosts=[{"name": f"n{i}", "cpus": 1} for i in range(3)])
    out = tmp_path / "out"
    with nothing_left():
        run = msl("bench", "train", "--config", config, "--rounds", "1", "--steps", "2", "--out", out)
    assert run.code == 0, run.output
    assert run.seconds < 60
    rows, page, summary = results(out, "rounds.png")
    seconds = {row["side"]: float(row["seconds_per_step"]) for row in rows}
    assert summary["step_chain_over_unsplit"] == pytest.approx(seconds["chain"] / seconds["unsplit"])
    one = seconds.get("unsplit_1_thread", seconds["unsplit"])
    assert summary["step_chain_over_unsplit_1_thread"] == pytest.approx(seconds["chain"] / one)
    assert "The losses of all 4 steps are bit-identical" in page


def test_more_steps_than_an_epoch_has_are_refused(tmp_path: Path) -> None:
    run = msl("bench", "train", "--config", write_config(tmp_path), "--steps", "7", "--out", tmp_path / "out")
    assert run.code == 2
    assert run.last_line == "msl: --steps 7: an epoch of this configuration has 6 steps; ask for at most that"


FABRIC_NAMES = {
    "step_sfc_over_direct",
    "rtt64_sfc_over_direct",
    "rtt64_raw_sfc_over_direct",
    "rtt64kib_sfc_over_direct",
    "bulk_sfc_over_direct",
    "bulk_raw_sfc_over_direct",
    "bulk_both_ways_sfc_over_direct",
    "cpu_per_byte_sfc_over_direct",
    "member_cpu_per_byte_sfc_over_direct",
    "packets_per_mib_sfc_over_direct",
    "iperf_srv6_over_plain",
    "iperf_reverse_srv6_over_plain",
}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes network namespaces")
@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
def test_fabric_compares_sfc_and_direct_on_one_testbed(tmp_path: Path) -> None:
    config = write_config(tmp_path, hosts=[{"name": f"n{i}", "cpus": 1} for i in range(3)])
    out = tmp_path / "out"
    with nothing_left():
        run = msl(
            *("bench", "fabric", "--config", config, "--rounds", "1", "--steps", "2"),
            *("--sizes", "64B,64KiB", "--out", out),
            timeout_s=200.0,
        )
    assert run.code == 0, run.output
    plots = {"round-trips.png", "throughput.png", "cpu.png", "steps.png"}
    assert {path.name for path in out.iterdir()} == {"results.csv", "results.md", "summary.json", *plots}
    assert all((out / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) >= FABRIC_NAMES
    assert all(summary[name] > 0 for name in FABRIC_NAMES)
    page = (out / "results.md").read_text()
    assert "The losses of all 6 steps are bit-identical over both fabrics" in page
    assert "have no rate limit" in page
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    value = {(row["quantity"], row["case"], row["side"]): float(row["value"]) for row in rows}
    trips = [value["rtt_us", "64", side] for side in ("sfc", "direct")]
    assert summary["rtt64_sfc_over_direct"] == pytest.approx(trips[0] / trips[1])
    # Source to sink by way of one NSF, and each time by way of a router: four links for each byte.
    for side in ("sfc", "direct", "raw_sfc", "raw_direct"):
        assert 4.0 < value["cost", "sent_per_byte", side] < 4.5


def test_a_part_that_there_is_not_is_refused(tmp_path: Path) -> None:
    run = msl("bench", "fabric", "--config", write_config(tmp_path), "--only", "ping", "--out", tmp_path / "out")
    assert run.code == 2
    assert run.last_line == "msl: --only ping: 'ping' is no part; there are rtt, bulk, step, iperf"


def test_a_folder_with_results_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()
    run = msl("bench", "link", "--out", tmp_path)
    assert run.code == 2
    assert re.fullmatch(r"msl: --out .*: is not empty; name a folder .*", run.last_line)


def test_a_stopped_benchmark_leaves_nothing_running(tmp_path: Path) -> None:
    with nothing_left():
        process = start("bench", "link", "--sizes", "1MiB", "--rounds", "1000", "--out", tmp_path / "out")
        assert process.stdout is not None
        while "round 0" not in (said := process.stdout.readline()):
            assert said, "it ended before its first round"
        process.send_signal(signal.SIGINT)
        run = finish(process, 30.0)
    assert run.code == 130, run.output
    assert run.last_line == "msl: stopped by SIGINT"
    assert not (tmp_path / "out").exists()
