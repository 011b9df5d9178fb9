"""`msl bench msi` and `msl bench msl` as a user runs them, with as little as it takes."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from msl.bench.inference.growth import LARGE, cases_of
from msl.bench.inference.lengths import of_length
from msl.config import load_config
from msl.net.requirements import first_lack
from msl.plan import lay_out
from tests.e2e.command import msl, nothing_left, write_config

LACK = first_lack()
TESTBED = f"evaluation{os.getpid()}"
FABRICS = ("direct",) if LACK is not None else ("sfc", "direct")
"""What a user would have here: one run with both says all that one with `direct` alone would."""
Value = dict[tuple[str, str, str], list[float]]


def job(folder: Path, fabrics: tuple[str, ...]) -> Path:
    """A job of two stages; with both fabrics on a testbed."""
    fabric = "sfc" if "sfc" in fabrics else "direct"
    return write_config(
        folder,
        fabric=fabric,
        cluster={"name": TESTBED},
        split={"cut": ["layer3"]},
        train={"batch_size": 4, "micro_batch": 2},
    )


def bench(name: str, config: Path, out: Path, *arguments: str) -> None:
    """Run a benchmark for one round; nothing of it stays."""
    with nothing_left(TESTBED):
        run = msl("bench", name, "--config", config, "--rounds", "1", "--out", out, *arguments, timeout_s=200.0)
    assert run.code == 0, run.output


def results(folder: Path, plots: set[str]) -> tuple[Value, str, dict[str, Any]]:
    """The values by (quantity, case, side), the page and the summary of a finished benchmark."""
    assert {path.name for path in folder.iterdir()} == {"results.csv", "results.md", "summary.json", *plots}
    assert all((folder / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)
    found: Value = {}
    with (folder / "results.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["quantity"], row["case"], row["side"]), []).append(float(row["value"]))
    return found, (folder / "results.md").read_text(), json.loads((folder / "summary.json").read_text())


@pytest.mark.cluster
@pytest.mark.slow
def test_inference_is_compared_with_ray_and_the_unsplit_model(tmp_path: Path) -> None:
    out, fabrics = tmp_path / "out", FABRICS
    bench("msi", job(tmp_path, fabrics), out, "--nsfs", "1", "--batches", "1,2")
    found, page, summary = results(out, {"latency-nsf1.png", "overhead.png", "where-nsf1.png"})
    sides = ("unsplit", *fabrics, "ray", "compiled")
    for batch in ("batch1", "batch2"):
        value = {side: found["latency_ms_nsf1", batch, side][0] for side in sides}
        for side in fabrics:
            for other in ("unsplit", "ray", "compiled"):
                assert summary[f"nsf1_{batch}_{side}_over_{other}"] == pytest.approx(value[side] / value[other])
            for other in ("ray", "compiled"):
                overhead = (value[side] - value["unsplit"]) / (value[other] - value["unsplit"])
                assert summary[f"nsf1_{batch}_overhead_{side}_over_{other}"] == pytest.approx(overhead)
            assert summary[f"batch1_{side}_over_ray"] == summary[f"nsf1_batch1_{side}_over_ray"]
            assert summary["percentiles_ms_nsf1"][batch][side]["p99"] >= value[side]
            parts = ("network", "socket", "serialise", "queue", "compute")
            spent = [found[f"where_ms_nsf1_{batch}", f"all_{part}", side] for part in parts]
            whole = found[f"where_ms_nsf1_{batch}", "all_sum", side]
            assert [sum(each) for each in zip(*spent, strict=True)] == pytest.approx(whole)
    assert ("batch1_sfc_over_direct" in summary) == ("sfc" in fabrics)
    assert summary["bytes_per_sample_nsf1"]["source"] == 4 * 32 * 32
    assert found["rss_mib_nsf1", "sink", "direct"][0] > 50
    assert "p50 / p95 / p99" in page
    assert "What is not comparable" in page


@pytest.mark.cluster
@pytest.mark.slow
def test_growth_is_measured_over_nsfs_and_clients(tmp_path: Path) -> None:
    out = tmp_path / "out"
    bench("msi", job(tmp_path, ("direct",)), out, "--only", "growth", "--nsfs", "1", "--clients", "1,6")
    plots = {f"growth-{x}-{y}.png" for x in ("nsfs", "clients") for y in ("latency", "requests")}
    found, page, _ = results(out, plots)
    cases = {f"nsf1_clients{clients}_batch{batch}" for clients in (1, 6) for batch in (1, 16)}
    assert {case for _, case, _ in found} == cases
    for case in cases:
        requests = found["growth_requests_per_s", case, "direct"][0]
        assert found["growth_samples_per_s", case, "direct"][0] == requests * int(case.rpartition("batch")[2])
    assert "Growth: latency" in page


@pytest.mark.cluster
@pytest.mark.slow
def test_learning_is_compared_with_gloo_and_ray(tmp_path: Path) -> None:
    out, fabrics = tmp_path / "out", FABRICS
    bench("msl", job(tmp_path, fabrics), out, "--stages", "2", "--batches", "4", "--steps", "1")
    found, page, summary = results(out, {"steps.png"})
    value = {side: found["step_ms", "stages2_batch4", side][0] for side in (*fabrics, "ray", "gloo")}
    assert summary["step_msl_over_gloo"] == pytest.approx(value["direct"] / value["gloo"])
    assert summary["step_msl_over_ray"] == pytest.approx(value["direct"] / value["ray"])
    assert ("step_sfc_over_gloo" in summary) == ("sfc" in fabrics)
    assert "The losses of all 4 steps are bit-identical on all sides" in page


def test_chains_of_all_lengths_have_the_same_hosts_and_the_job_its_own_cut(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, hosts=["a", "b", "c"], chain={"source": "b", "sink": "c"}))
    found = of_length(config, [2, 3, 5], False, "bench")
    assert {tuple(host.name for host in one.hosts) for one in found.values()} == {("b", "a", "c", "n0", "n1", "n2")}
    places = {stages: [place.host for place in lay_out(one)[1]] for stages, one in found.items()}
    assert places == {2: ["b", "a", "c"], 3: ["b", "a", "c", "n0"], 5: ["b", "a", "c", "n0", "n1", "n2"]}
    assert found[3].split == config.split
    assert (found[5].split.cut, found[5].split.stages) == (None, 5)


def test_growth_has_each_number_of_nsfs_with_one_client_and_one_of_them_with_all() -> None:
    cases = {(case.nsfs, case.clients, case.batch) for case in cases_of([1, 2], 2, [1, 2, 64])}
    assert cases == {(1, 1, 1), (1, 8, 1), (2, 8, 1)} | {(2, n, batch) for n in (1, 2, 64) for batch in (1, LARGE)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("msi", "--only", "ping"), "--only ping: 'ping' is no part; there are latency, where, growth"),
        (("msi", "--nsfs", "0,1"), "--nsfs 0,1: write numbers from 1 to 16, like 1,2,4"),
        (("msl", "--batches", "5"), "--batches 5: cannot be cut into 2 micro-batches of one size"),
        (
            ("msl", "--stages", "3", "--batches", "4"),
            "--stages 3: the job has 2 micro-batches a step; torch's 1F1B needs one for each stage: set"
            " train.micro_batch to less",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    name, *options = arguments
    run = msl("bench", name, "--config", job(tmp_path, ("direct",)), "--out", tmp_path / "out", *options)
    assert run.code == 2, run.output
    assert run.last_line == f"msl: {message}"
    assert not (tmp_path / "out").exists()
