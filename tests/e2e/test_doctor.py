"""`msl doctor` on real hosts: healthy, broken in one place after the other, and without any rights."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from pyroute2 import IPRoute

from msl.actors import local
from msl.net import netns
from msl.net.requirements import first_lack
from msl.net.sfc.proxy import detach_all
from tests.e2e.command import JOB, Finished, msl, nothing_left, write_config

LACK = first_lack()
NAME = f"doctor{os.getpid()}"
cluster = pytest.mark.cluster


def on_testbed(test: Callable[..., None]) -> Callable[..., None]:
    """Marks of a test that needs a testbed."""
    lacks = pytest.mark.skipif(LACK is not None, reason=f"the fabric sfc cannot be had here: {LACK and LACK.need}")
    return cluster(pytest.mark.root(lacks(test)))


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
for job in ("existing", "wrong"):
    msl("doctor", "--config", f"{folder}/{job}.yaml", "--set", f"cluster.address={cluster.gcs}")
msl("down", "--config", f"{folder}/job.yaml")
"""


def rows(done: Finished, first: str) -> dict[str, list[str]]:
    """The rows whose first cell this is, by their second one."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in done.output.splitlines()]
    return {row[1]: row[2:] for row in cells if row[0] == first and len(row) > 2}


def failing(done: Finished) -> set[tuple[str, str]]:
    """First and second cell of the rows that fail."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in done.output.splitlines()]
    return {(row[0], row[1]) for row in cells if row[2:3] == ["FAIL"]}


def test_without_capabilities_it_ends_with_4_and_tells_the_remedies() -> None:
    stripped = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []
    command = [*stripped, sys.executable, "-m", "msl", "doctor"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 4, ran.stdout + ran.stderr
    lacking = next(line for line in ran.stdout.splitlines() if line.startswith("capabilities"))
    assert "FAIL" in lacking
    assert "run as root; in a container" in lacking
    assert re.fullmatch(
        r"msl: \d of 10 needs are not met; on this machine msl will use plain TCP \(fabric direct\)\n", ran.stderr
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a cluster that is up."""
    config = write_config(tmp_path_factory.mktemp("up"), fabric="sfc", cluster={"name": NAME})
    with nothing_left(NAME):
        up = msl("up", "--config", config)
        assert up.code == 0, up.output
        yield config
        down = msl("down", "--config", config)
        assert down.code == 0, down.output


@on_testbed
def test_of_healthy_hosts_everything_is_looked_at(kept: Path) -> None:
    done = msl("doctor", "--config", kept)
    assert done.code == 0, done.output
    assert failing(done) == set()
    for host in ("n0", "n1", "n2"):
        told = rows(done, host)
        assert told[f"Ray node '{host}'"][0] == "pass"
        assert re.match(r"[+-]\d+\.\d ms against this machine", told["clock"][1])
        assert told["interface fab2"] == ["pass", "up, MTU 9000"]
        assert told["SFC agent"][1].startswith("running, inner MTU ")
        assert told["waypoints r1, r2"][0] == "pass"
        assert f"torch {told['versions as elsewhere'][1].partition('torch ')[2]}" in done.output
    assert rows(done, "n0 -> n1")["packets of 9000 bytes to fd00:6d73:6c:2::1"][0] == "pass"
    assert rows(done, "n2 -> n1")["SIDs"] == ["pass", "lead to its proxy: fd00:6d73:6c:2:2::"]


@on_testbed
def test_a_link_with_a_smaller_mtu_fails_for_all_pairs_that_use_it(kept: Path) -> None:
    link = ["ip", "-n", f"msl-{NAME}-r1", "link", "set", "h1", "mtu"]
    subprocess.run([*link, "1400"], check=True, timeout=10)
    try:
        done = msl("doctor", "--config", kept)
    finally:
        subprocess.run([*link, "9000"], check=True, timeout=10)
    assert done.code == 4, done.output
    # veth also drops at its receiving end what is larger than that end's MTU, and tells nobody.
    assert {pair for pair, _ in failing(done)} == {"n0 -> n1", "n2 -> n1", "n1 -> n0", "n1 -> n2"}
    assert rows(done, "n1 -> n0")["packets of 9000 bytes to fd00:6d73:6c:1::1"][1].endswith("and nobody says so")
    _, found, remedy = rows(done, "n0 -> n1")["packets of 9000 bytes to fd00:6d73:6c:2::1"]
    assert found == "at most 1400 bytes get through"
    assert "ip link set LINK mtu 9000" in remedy
    assert re.match(r"msl: 4 of \d+ needs are not met$", done.last_line)


@on_testbed
def test_what_is_broken_later_is_named_host_by_host(kept: Path) -> None:
    def detach() -> None:
        with IPRoute() as netlink:
            assert detach_all(netlink)

    # Without its proxy, SIDs of n1 lead nowhere, wherever one comes from.
    netns.inside(f"msl-{NAME}-n1", detach)
    done = msl("doctor", "--config", kept)
    assert done.code == 4, done.output
    sid = ("SID fd00:6d73:6c:2:2::", "its proxy does not see what is sent")
    assert {place for place in failing(done) if "->" in place[0]} == {("n0 -> n1", sid[0]), ("n2 -> n1", sid[0])}
    assert rows(done, "n0 -> n1")[sid[0]][1] == sid[1]

    # A raylet that is gone, and a link that is down.
    running = local.find(NAME)
    assert running is not None
    os.kill(running.hosts[1].pid, signal.SIGKILL)
    subprocess.run(["ip", "-n", f"msl-{NAME}-n2", "link", "set", "fab1", "down"], check=True, timeout=10)
    done = msl("doctor", "--config", kept)
    assert done.code == 4, done.output
    assert rows(done, "n1") == {"Ray node 'n1'": ["FAIL", "dead or missing; alive are n0, n2", "msl down, then msl up"]}
    assert rows(done, "n2")["interface fab1"] == ["FAIL", "is down", "ip link set fab1 up"]
    assert rows(done, "n0 -> n2")["packets of 9000 bytes to fd00:6d73:6c:3::1"][1].startswith("unreachable")
    assert "Traceback" not in done.output

    # Without the head nobody can be asked; that, too, is a finding.
    os.kill(running.hosts[0].pid, signal.SIGKILL)
    done = msl("doctor", "--config", kept)
    assert done.code == 4, done.output
    assert failing(done) == {("n0", "Ray node 'n0'"), ("n1", "Ray node 'n1'")}
    assert "the head is gone" in done.output


@on_testbed
def test_what_start_has_started_is_gone_afterwards(tmp_path: Path) -> None:
    name = f"{NAME}s"
    config = write_config(tmp_path, fabric="auto", cluster={"name": name})
    with nothing_left(name):
        without = msl("doctor", "--config", config)
        done = msl("doctor", "--config", config, "--start")
    assert without.code == 0, without.output
    assert f"no cluster {name!r} is running" in without.output
    assert done.code == 0, done.output
    assert rows(done, "n2 -> n0")["SIDs"][0] == "pass"


@cluster
def test_the_hosts_of_an_existing_cluster_are_looked_at_by_their_ray_nodes(tmp_path: Path) -> None:
    name = f"{NAME}x"
    write_config(tmp_path, cluster={"name": name, "network": "host"}, hosts=["a", "b"], split={"cut": ["layer3"]})
    hosts = [{"name": "camera", "ray_node": "b"}, {"name": "server", "ray_node": "a"}]
    job = {**JOB, "cluster": {"address": "set:0"}, "split": {"cut": ["layer3"]}}
    (tmp_path / "existing.yaml").write_text(yaml.safe_dump({**job, "hosts": hosts}))
    wrong = [{**hosts[0], "address": "192.0.2.7"}, {**hosts[1], "ray_node": "nobody"}]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({**job, "hosts": wrong}))
    with nothing_left():
        ran = subprocess.run(
            [sys.executable, "-c", SCENARIO, str(tmp_path), name], text=True, capture_output=True, timeout=200
        )
    assert ran.returncode == 0, ran.stderr
    ended = [json.loads(line) for line in ran.stdout.splitlines()]
    up, existing, bad, down = (Finished(each["code"], each["output"], 0.0) for each in ended)
    assert (up.code, down.code) == (0, 0), (up, down)
    assert existing.code == 0, existing.output
    assert rows(existing, "camera")["Ray node 'b'"][0] == "pass"
    (pair,) = rows(existing, "camera -> server").values()
    assert pair[0] == "pass"
    assert bad.code == 4, bad.output
    assert failing(bad) == {("server", "Ray node 'nobody'"), ("camera", "address for the others")}
    assert "alive are a, b" in rows(bad, "server")["Ray node 'nobody'"][1]
    assert rows(bad, "camera")["address for the others"][-1] == "correct its 'address' in hosts"
