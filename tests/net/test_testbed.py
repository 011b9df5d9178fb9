"""Building and removing the testbed: nothing stays, nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from msl.config import TestbedConfig
from msl.errors import ClusterError, ConfigError
from msl.net import netns, testbed, wiring
from msl.net.testbed import Testbed
from tests.net.nodes import arrives, lay_small_domain, some_name, udp_socket

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = lay_small_domain()
LINKS = TestbedConfig()
NODES = ["mgmt", "n0", "n1", "n2", "r1", "r2"]


@pytest.fixture
def name() -> Iterator[str]:
    with some_name() as name:
        yield name


@pytest.fixture(autouse=True)
def _nothing_else_changes() -> Iterator[None]:
    own_interfaces = {Path("/sys/class/net", name) for name in ("fab1", "h0", "mgmt", "mgmt0")}
    before = set(Path("/sys/class/net").iterdir())
    yield
    assert netns.named(f"msl-t{os.getpid()}x") == []
    assert not (set(Path("/sys/class/net").iterdir()) - before) & own_interfaces


def of(name: str) -> list[str]:
    return [f"msl-{name}-{node}" for node in NODES]


def works(bed: Testbed) -> bool:
    first, last = str(DOMAIN.hosts[0].address), str(DOMAIN.hosts[2].address)
    with udp_socket(bed.hosts[0], first) as sender, udp_socket(bed.hosts[2], last) as receiver:
        return arrives(sender, receiver)


@contextmanager
def foreign(name: str) -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=10)
    try:
        yield
        assert name in netns.named("")
    finally:
        netns.delete(name)


def test_build_makes_what_it_says_and_remove_takes_it_all(name: str) -> None:
    bed = testbed.build(name, DOMAIN, LINKS)
    assert netns.named(f"msl-{name}") == of(name)
    assert [host.netns for host in bed.hosts] == [f"msl-{name}-{host}" for host in ("n0", "n1", "n2")]
    assert [host.address for host in bed.hosts] == ["10.66.0.10", "10.66.0.11", "10.66.0.12"]
    assert bed.hosts[0].interfaces == ("fab1", "fab2")
    assert bed.routers == (("r1", f"msl-{name}-r1"), ("r2", f"msl-{name}-r2"))
    assert testbed.remove(name) == of(name)
    assert netns.named(f"msl-{name}") == []


def test_remove_is_idempotent_and_build_works_again(name: str) -> None:
    assert testbed.remove(name) == []
    for _ in range(2):
        testbed.build(name, DOMAIN, LINKS)
        assert testbed.remove(name) == of(name)
        assert testbed.remove(name) == []


@pytest.mark.parametrize(
    "step", ["prepare_router", "set_up_router", "set_up_management", "set_up_host", "join_management"]
)
def test_after_a_failure_on_the_way_nothing_stays(name: str, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Callable[..., None] = getattr(wiring, step)
    calls = []

    def half(*arguments: object) -> None:
        whole(*arguments)
        calls.append(step)
        if len(calls) == 2 or step == "set_up_management":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(wiring, step, half)
    with pytest.raises(ClusterError, match=rf"network namespace msl-{name}-\w+: No space left on device"):
        testbed.build(name, DOMAIN, LINKS)
    assert netns.named(f"msl-{name}") == []


def test_after_an_interrupt_nothing_stays(name: str, monkeypatch: pytest.MonkeyPatch, interruptible: None) -> None:
    def interrupted(netns: str, mark: str) -> None:
        create(netns, mark)
        if netns.endswith("n1"):
            os.kill(os.getpid(), signal.SIGINT)

    create = netns.create
    monkeypatch.setattr(netns, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        testbed.build(name, DOMAIN, LINKS)
    assert netns.named(f"msl-{name}") == []


@pytest.mark.parametrize(
    ("step", "left"),
    [
        ("msl.net.netns._share_folder", 1),  # the second namespace has no name yet
        ("msl.net.netns._write_marked_file", 1),  # it has a name, but is not mounted
        ("msl.net.wiring.set_up_router", 6),
        ("msl.net.wiring.set_up_host", 6),
    ],
)
def test_remove_clears_away_what_a_killed_build_left(name: str, step: str, left: int) -> None:
    module, _, function = step.rpartition(".")
    code = f"""
import sys, time
import {module} as module
from tests.net.nodes import lay_small_domain
from msl.config import TestbedConfig
from msl.net import testbed

calls = []
def freeze(*arguments):
    whole(*arguments)
    calls.append(1)
    if len(calls) == 2:
        print("frozen", flush=True)
        time.sleep(100)

whole, module.{function} = module.{function}, freeze
testbed.build({name!r}, lay_small_domain(), TestbedConfig())
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "frozen\n"
        process.kill()
    assert netns.named(f"msl-{name}")
    assert len(testbed.remove(name)) == left
    assert netns.named(f"msl-{name}") == []


def test_remove_leaves_foreign_namespaces_of_similar_names_alone(name: str) -> None:
    longer = f"{name}-b"
    with foreign(f"msl-{name}-foo"):
        try:
            testbed.build(name, DOMAIN, LINKS)
            other = testbed.build(longer, DOMAIN, LINKS)
            assert testbed.remove(name) == of(name)
            assert works(other)
        finally:
            assert testbed.remove(longer) == of(longer)


def test_two_testbeds_at_the_same_time_do_not_disturb_each_other(name: str) -> None:
    with some_name() as another, ThreadPoolExecutor(2) as pool:
        beds = list(pool.map(lambda new: testbed.build(new, DOMAIN, LINKS), [name, another]))
        assert all(works(bed) for bed in beds)
        testbed.remove(name)
        assert works(beds[1])


def test_of_two_builds_of_the_same_name_one_wins(name: str) -> None:
    start = threading.Barrier(2)

    def attempt(_: int) -> Testbed | ClusterError:
        start.wait(timeout=5)
        try:
            return testbed.build(name, DOMAIN, LINKS)
        except ClusterError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(attempt, range(2)))
    beds = [outcome for outcome in outcomes if isinstance(outcome, Testbed)]
    assert len(beds) == 1
    assert works(beds[0])


def test_a_foreign_namespace_in_the_way_is_named_and_kept(name: str) -> None:
    with foreign(f"msl-{name}-n1"):
        with pytest.raises(ClusterError, match=rf"^testbed {name}: .* msl-{name}-n1 belongs to somebody else; .+$"):
            testbed.build(name, DOMAIN, LINKS)
        assert netns.named(f"msl-{name}") == [f"msl-{name}-n1"]


def test_a_namespace_of_another_testbed_in_the_way_is_told(name: str) -> None:
    inner = lay_small_domain(hosts=1)
    with some_name() as other:
        netns.create(f"msl-{name}-n0", f"msl testbed {other}")
        try:
            with pytest.raises(ClusterError, match=f"belongs to testbed {other}"):
                testbed.build(name, inner, LINKS)
        finally:
            netns.delete(f"msl-{name}-n0")


def test_a_testbed_that_is_there_already_is_left_running(name: str) -> None:
    bed = testbed.build(name, DOMAIN, LINKS)
    with pytest.raises(ClusterError, match=f"testbed {name}: is there already"):
        testbed.build(name, DOMAIN, LINKS)
    assert works(bed)


@pytest.mark.parametrize("host", ["r1", "mgmt"])
def test_a_host_with_the_name_of_a_node_of_the_testbed_is_refused(name: str, host: str) -> None:
    hosts = (*DOMAIN.hosts[:2], type(DOMAIN.hosts[2])(host, DOMAIN.hosts[2].locator))
    domain = type(DOMAIN)(DOMAIN.block, hosts, DOMAIN.routers, DOMAIN.max_segments)
    with pytest.raises(ConfigError, match=f"hosts: .*'{host}'"):
        testbed.build(name, domain, LINKS)


def test_the_links_go_although_a_process_is_still_inside(name: str) -> None:
    bed = testbed.build(name, DOMAIN, LINKS)
    stray = netns.inside(bed.hosts[0].netns, lambda: subprocess.Popen(["sleep", "60"]))
    try:
        testbed.remove(name)
        devices = Path(f"/proc/{stray.pid}/net/dev").read_text()
        assert [line.split(":")[0].strip() for line in devices.splitlines()[2:]] == ["lo"]
        assert testbed.build(name, DOMAIN, LINKS) == bed
    finally:
        stray.kill()
        stray.wait(timeout=5)


def test_names_as_long_as_the_config_allows_work() -> None:
    with some_name() as short:
        name = short.ljust(48, "x")
        hosts = tuple(type(host)(host.name.ljust(48, "y"), host.locator) for host in DOMAIN.hosts)
        try:
            bed = testbed.build(name, type(DOMAIN)(DOMAIN.block, hosts, DOMAIN.routers, DOMAIN.max_segments), LINKS)
            assert works(bed)
        finally:
            testbed.remove(name)


def test_without_root_it_says_so(name: str) -> None:
    code = f"""
import os
from tests.net.nodes import lay_small_domain
from msl.config import TestbedConfig
from msl.net import testbed
domain = lay_small_domain()
os.setuid(65534)
try:
    testbed.build({name!r}, domain, TestbedConfig())
except testbed.ClusterError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert said == f"network namespace msl-{name}-mgmt: Operation not permitted; a testbed needs root\n"


def test_it_comes_and_goes_fast(name: str) -> None:
    domain = lay_small_domain(hosts=4)
    begin = time.monotonic()
    testbed.build(name, domain, LINKS)
    built = time.monotonic()
    testbed.remove(name)
    assert built - begin < 1.5
    assert time.monotonic() - built < 1.0
