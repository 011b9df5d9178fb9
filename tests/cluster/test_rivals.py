"""The rivals of the benchmarks compute what the unsplit model computes, and leave nothing running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from msl.bench.rivals.schedule import Work, one_forward_one_backward
from msl.net.requirements import first_lack
from tests.cluster.rivals_driver import INFERRING
from tests.e2e.command import nothing_left, write_config

LACK = first_lack()
HOSTS = [{"name": f"n{i}", "cpus": 1} for i in range(3)]
SPLIT = {"cut": ["layer2.0.conv2", "layer4"]}
"""The first one lies in a residual block: two tensors cross it."""
TRAIN = {"batch_size": 8, "micro_batch": 2}
STEPS = 2


def run_rivals(folder: Path, names: Sequence[str], **changes: Any) -> dict[str, Any]:
    """What some rivals of a small job computed, with one thread each, which is the unsplit model's to the last bit."""
    config = write_config(folder, hosts=HOSTS, split=SPLIT, train=TRAIN, **changes)
    out = folder / "out.json"
    command = [sys.executable, "-m", "tests.cluster.rivals_driver", str(config), str(out), "3", str(STEPS), *names]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150)
    assert run.returncode == 0, run.stdout
    found: dict[str, Any] = json.loads(out.read_text())
    losses = found["unsplit"]["losses"]
    assert len(set(losses)) == 2 * STEPS
    for name in names:
        if name in INFERRING:
            assert found[name]["equal"] == [True] * 4, name
            assert found[name]["milliseconds"] > 0
        else:
            assert found[name]["losses"] == losses, name
            assert all(seconds > 0 for seconds in found[name]["seconds"])
    assert all(seconds < 10 for what, seconds in found["times"].items() if what.endswith("close"))
    return found


@pytest.mark.cluster
@pytest.mark.slow
def test_rivals_equal_the_unsplit_model_bit_for_bit(tmp_path: Path) -> None:
    with nothing_left():
        run_rivals(tmp_path, ["ray_calls", "compiled_graph", "ray_training", "gloo_1f1b"])


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(LACK is not None, reason=f"the fabric sfc cannot be had here: {LACK and LACK.need}")
def test_on_the_testbed_gloo_goes_through_the_fabric(tmp_path: Path) -> None:
    name = f"rivals{os.getpid()}"
    with nothing_left(name):
        found = run_rivals(tmp_path, ["gloo_gpipe"], fabric="sfc", cluster={"name": name})
    hosts = found["addresses"]
    assert all(":" in address for address in hosts)
    for stage, peers in enumerate(found["gloo_gpipe"]["peers"]):
        neighbours = {hosts[other] for other in (stage - 1, stage + 1) if 0 <= other < len(hosts)}
        assert neighbours <= set(peers)


def test_the_last_stage_turns_each_micro_batch_at_once() -> None:
    assert one_forward_one_backward(2, 3, 2) == [Work("forward", 0), Work("forward", 1)]


@pytest.mark.parametrize("micro_batches", [1, 2, 5])
def test_a_stage_has_as_many_micro_batches_under_way_as_stages_follow(micro_batches: int) -> None:
    for stage in range(3):
        order = one_forward_one_backward(stage, 4, micro_batches)
        for way in ("forward", "backward"):
            assert [work.micro_batch for work in order if work.way == way] == list(range(micro_batches))
        under_way = [
            sum(1 if work.way == "forward" else -1 for work in order[:end]) for end in range(1, len(order) + 1)
        ]
        assert min(under_way) >= 0
        assert max(under_way) == min(micro_batches, 4 - stage)
        assert under_way[-1] == 0
