"""`cluster.address`: an existing Ray cluster is joined, with its hosts as Ray nodes by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.command import JOB, msl, nothing_left, write_config

pytestmark = pytest.mark.cluster

SCENARIO = """
import json, os, subprocess, sys
from msl.actors import local
from msl.net import namespace

reason = namespace.isolate()  # the "existing" cluster listens on all interfaces: of a network of its own
assert reason is None, reason
folder, name = sys.argv[1:]

def msl(*arguments):
    done = subprocess.run([sys.executable, "-m", "msl", *arguments], text=True, capture_output=True)
    print(json.dumps({"code": done.returncode, "output": done.stdout + done.stderr}), flush=True)

msl("up", "--config", f"{folder}/job.yaml")
cluster = local.find(name)
os.environ["RAY_AUTH_TOKEN_PATH"] = str(cluster.token_path)
address = f"cluster.address={cluster.gcs}"
for job in ("existing", "unknown"):
    msl("train", "--config", f"{folder}/{job}.yaml", "--set", address, "--out", f"{folder}/{job}")
del os.environ["RAY_AUTH_TOKEN_PATH"]
os.environ["HOME"] = folder
msl("train", "--config", f"{folder}/existing.yaml", "--set", address, "--out", f"{folder}/without-token")
msl("down", "--config", f"{folder}/job.yaml")
"""


def test_an_address_at_which_nothing_listens_is_told_at_once(tmp_path: Path) -> None:
    config = write_config(tmp_path, cluster={"address": "127.0.0.1:9"}, hosts=["a", "b", "c"])
    done = msl("train", "--config", config, "--out", tmp_path / "run", timeout_s=30.0)
    assert done.code == 3
    assert "cluster.address: 127.0.0.1:9: cannot be reached: Connection refused" in done.last_line


def test_an_existing_cluster_is_joined_by_its_address_and_its_token(tmp_path: Path) -> None:
    name = f"existing-{os.getpid()}"
    write_config(tmp_path, cluster={"name": name, "network": "host"}, hosts=["a", "b", "c"])
    hosts: list[dict[str, Any]] = [
        {"name": "camera", "ray_node": "b"},
        {"name": "gateway", "ray_node": "a"},
        {"name": "server", "ray_node": "c"},
    ]
    job = {**JOB, "cluster": {"address": "set:0"}, "hosts": hosts}
    (tmp_path / "existing.yaml").write_text(yaml.safe_dump(job))
    hosts[1] = {"name": "gateway", "ray_node": "nobody"}
    (tmp_path / "unknown.yaml").write_text(yaml.safe_dump(job))
    with nothing_left():
        ran = subprocess.run(
            [sys.executable, "-c", SCENARIO, str(tmp_path), name], text=True, capture_output=True, timeout=200
        )
    assert ran.returncode == 0, ran.stderr
    up, train, unknown, without_token, down = (json.loads(line) for line in ran.stdout.splitlines())
    assert up["code"] == 0, up
    assert "listens on all interfaces" in up["output"]
    assert train["code"] == 0, train
    assert "source@camera -> nsf1@gateway -> sink@server is open" in train["output"]
    assert json.loads((tmp_path / "existing" / "summary.json").read_text())["completed"] is True
    assert unknown["code"] == 3
    assert "host gateway: no living Ray node 'nobody' in the cluster; there are a, b, c" in unknown["output"]
    assert without_token["code"] == 3
    assert "token" in without_token["output"].lower()
    assert down["code"] == 0
