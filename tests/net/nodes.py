"""A small SR domain, and what its hosts send each other."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msl.config import Config, TestbedConfig
from msl.net import testbed
from msl.net.netns import inside
from msl.net.testbed import Testbed, TestbedHost
from msl.plan.steering import DomainPlan, lay_domain

PORT = 5000
_numbers = itertools.count()


def lay_small_domain(hosts: int = 3, planes: int = 2) -> DomainPlan:
    config = Config.model_validate(
        {
            "model": {"factory": "a:b"},
            "data": {"factory": "a:b"},
            "split": {"cut": ["x"]},
            "testbed": {"planes": planes},
        }
    )
    return lay_domain(config, [f"n{index}" for index in range(hosts)])


@contextmanager
def some_name() -> Iterator[str]:
    """The name of a testbed that nobody else has, and that is gone at the end."""
    name = f"t{os.getpid()}x{next(_numbers)}"
    try:
        yield name
    finally:
        testbed.remove(name)


@contextmanager
def running(domain: DomainPlan, settings: TestbedConfig | None = None) -> Iterator[Testbed]:
    with some_name() as name:
        yield testbed.build(name, domain, settings or TestbedConfig())


@contextmanager
def udp_socket(host: TestbedHost, address: str, port: int = PORT) -> Iterator[socket.socket]:
    sock = inside(host.netns, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    with sock:
        sock.settimeout(3)
        sock.bind((address, port))
        yield sock


def arrives(sender: socket.socket, receiver: socket.socket, payload: bytes = b"hello") -> bool:
    """Whether a datagram gets to the receiver, with the address that the sender is bound to."""
    sender.sendto(payload, receiver.getsockname())
    try:
        received, origin = receiver.recvfrom(65_536)
    except TimeoutError:
        return False
    return received == payload and origin[:2] == sender.getsockname()[:2]


def received_packets(netns: str, interface: str) -> int:
    return _received(netns, interface)[1]


def received_bytes(netns: str, interface: str) -> int:
    return _received(netns, interface)[0]


def _received(netns: str, interface: str) -> tuple[int, int]:
    # /proc/net would show the namespace of the process, not of the thread.
    table = inside(netns, Path("/proc/thread-self/net/dev").read_text)
    line = next(line for line in table.splitlines() if line.strip().startswith(f"{interface}:"))
    num_bytes, num_packets, *_ = line.split(":")[1].split()
    return int(num_bytes), int(num_packets)


def read_setting(netns: str, setting: str) -> str:
    return inside(netns, Path("/proc/sys/net", setting).read_text).strip()


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
