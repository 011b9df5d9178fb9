"""Named network namespaces: entering, marks, and what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from msl.net import netns
from tests.net.nodes import some_name

pytestmark = pytest.mark.root


@pytest.fixture
def there() -> Iterator[str]:
    with some_name() as name:
        netns.create(name, "of a test")
        try:
            yield name
        finally:
            netns.delete(name)


def test_what_is_made_inside_belongs_to_the_namespace_and_the_caller_stays_outside(there: str) -> None:
    def look() -> tuple[str, bytes, socket.socket]:
        child = subprocess.run(["readlink", "/proc/self/ns/net"], check=True, capture_output=True, timeout=10)
        return (
            str(Path("/proc/thread-self/ns/net").readlink()),
            child.stdout.strip(),
            socket.create_server(("127.0.0.1", 0)),
        )

    outside = str(Path("/proc/thread-self/ns/net").readlink())
    seen, seen_by_child, server = netns.inside(there, look)
    with server, pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.getsockname()).close()
    assert seen != outside
    assert seen_by_child.decode() == seen
    assert str(Path("/proc/thread-self/ns/net").readlink()) == outside


def test_settings_written_inside_do_not_change_the_machine(there: str) -> None:
    setting = Path("/proc/sys/net/ipv6/conf/all/seg6_enabled")
    before = setting.read_text()
    netns.inside(there, lambda: setting.write_text("1" if before.strip() == "0" else "0"))
    assert setting.read_text() == before
    assert netns.inside(there, setting.read_text) != before


def test_exceptions_come_out(there: str) -> None:
    with pytest.raises(ZeroDivisionError):
        netns.inside(there, lambda: 1 // 0)


def test_a_missing_namespace_is_named() -> None:
    with pytest.raises(netns.NoNetnsError, match="no network namespace nowhere"):
        netns.inside("nowhere", lambda: None)


def test_an_interrupt_waits_for_what_is_under_way(there: str, interruptible: None) -> None:
    done = threading.Event()

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        done.set()

    with pytest.raises(KeyboardInterrupt):
        netns.inside(there, interrupted)
    assert done.is_set()


def test_no_descriptor_stays_open(there: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        assert netns.mark_of(there) == "of a test"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_taken_name_is_refused_and_keeps_its_mark(there: str) -> None:
    with pytest.raises(FileExistsError):
        netns.create(there, "of another")
    assert netns.mark_of(there) == "of a test"


def test_a_name_whose_mount_is_gone_still_tells_its_mark(there: str) -> None:
    subprocess.run(["umount", netns.netns_path(there)], check=True, timeout=10)
    assert not netns.is_mounted(there)
    assert netns.mark_of(there) == "of a test"


def test_ip_netns_and_msl_see_each_others_namespaces(there: str) -> None:
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True, timeout=10).stdout
    assert there in [line.split()[0] for line in listed.splitlines()]
    other = f"{there}-ip"
    subprocess.run(["ip", "netns", "add", other], check=True, timeout=10)
    try:
        assert netns.is_mounted(other)
        assert netns.mark_of(other) is None
    finally:
        netns.delete(other)
    assert other not in netns.named("")


def test_the_first_namespace_of_a_machine_can_be_made() -> None:
    """In a mount namespace where /run/netns is an ordinary folder, not yet mounted on itself."""
    with some_name() as name:
        program = (
            "from msl.net import netns\n"
            f"netns.create({name!r}, 'first')\n"
            f"assert netns.is_mounted({name!r}) and netns.mark_of({name!r}) == 'first'\n"
            f"netns.delete({name!r})\n"
        )
        script = 'mount -t tmpfs none /run && mkdir /run/netns && exec "$0" -c "$1"'
        made = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, sys.executable, program],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert made.returncode == 0, made.stderr
