"""The path of live connections is changed: other routers, longer and shorter segment lists."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from msl.config import TestbedConfig
from msl.net.sfc.fabric import SfcFabric
from msl.net.sfc.path import set_return
from msl.plan.addressing import SegmentList
from msl.plan.paths import return_segments
from tests.net.chain import Chains, OpenChain, lay, path, running
from tests.net.nodes import received_bytes

pytestmark = [pytest.mark.root, pytest.mark.slow]

DOMAIN, PLAN = lay()
PATHS: tuple[SegmentList, ...] = (
    path(DOMAIN, PLAN, "r1"),
    path(DOMAIN, PLAN, "r2"),
    path(DOMAIN, PLAN, None),
    path(DOMAIN, PLAN, "r2", None, "r1"),
    path(DOMAIN, PLAN, ["r2", "r2", "r2"]),
    path(DOMAIN, PLAN, "r1", ["r1", "r1"], "r2"),
)
CHANGES = 100
STALL_S = 1.0
# A tenth of what this machine can carry, so that a stall is one of the network, and not of a process that waits for
# its turn.
LINKS = TestbedConfig(rate_mbit=500)


@pytest.fixture(scope="module")
def chains() -> Iterator[Chains]:
    with running(DOMAIN, LINKS) as chains:
        yield chains


@pytest.fixture
def chain(chains: Chains) -> Iterator[OpenChain]:
    with chains.open(PLAN) as chain:
        yield chain
        assert chains.drops() == {}
        assert chains.checksum_errors() == 0
        chains.wait_until_forgotten()


def test_paths_have_from_three_to_twelve_segments() -> None:
    assert sorted({len(segments) for segments in PATHS}) == [3, 5, 6, 7, 12]


def test_transfers_go_on_without_a_stall_through_a_hundred_path_changes(chain: OpenChain) -> None:
    load = chain.load(0, 10**8, parallel=4)
    time.sleep(1)
    carried = [_received_by_hosts(chain, plane) for plane in ("fab1", "fab2")]
    for segments in itertools.islice(itertools.cycle(PATHS), CHANGES):
        chain.steer(segments)
        time.sleep(0.05)
        load.reports()
    moved = [_received_by_hosts(chain, plane) - before for plane, before in zip(("fab1", "fab2"), carried, strict=True)]
    load.end_input()
    reports = load.finish(60)
    assert min(moved) > 10**7, "both planes carried a share"
    assert len(reports) >= 4
    assert max(max(report["forward_gap_s"], report["backward_gap_s"]) for report in reports) < STALL_S


def test_new_connections_open_while_the_path_changes(chain: OpenChain) -> None:
    load = chain.load(0, 1000, parallel=4)
    for segments in itertools.islice(itertools.cycle(PATHS), CHANGES):
        chain.steer(segments)
        time.sleep(0.03)
    load.end_input()
    reports = load.finish(60)
    assert len(reports) > 100
    assert max(report["seconds"] for report in reports) < STALL_S


@pytest.mark.parametrize("num_bytes", [1, 4_000, 60_000])
def test_no_round_trip_is_lost_when_the_path_changes_every_five(chains: Chains, num_bytes: int) -> None:
    with chains.open(PLAN, sink=False) as chain, _echo(chains) as client, client.makefile("rb") as received:
        slowest_s = 0.0
        for segments in itertools.islice(itertools.cycle(PATHS), CHANGES // 2):
            chain.steer(segments)
            for _ in range(5):
                message = os.urandom(num_bytes)
                begun = time.monotonic()
                client.sendall(message)
                assert received.read(num_bytes) == message
                slowest_s = max(slowest_s, time.monotonic() - begun)
    assert slowest_s < STALL_S
    assert chains.drops() == {}


@contextlib.contextmanager
def _echo(chains: Chains) -> Iterator[socket.socket]:
    """A client's socket, connected to a sink that sends everything back."""
    sink = PLAN.stops[-1]
    with chains.inside(sink.host, SfcFabric(PLAN, sink.hop).listen) as listener:
        serving = threading.Thread(target=_send_back, args=(listener,), daemon=True)
        serving.start()
        with chains.inside(PLAN.source, lambda: SfcFabric(PLAN, 0).onward(None)) as client:
            client.settimeout(10)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield client
        serving.join(10)


def _send_back(listener: socket.socket) -> None:
    accepted, _ = listener.accept()
    with accepted:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while received := accepted.recv(1 << 20):
            accepted.sendall(received)


def _received_by_hosts(chain: OpenChain, interface: str) -> int:
    return sum(received_bytes(host.netns, interface) for host in chain.chains.bed.hosts)


def test_answers_change_to_a_way_of_their_own_and_back_without_a_stall(chain: OpenChain) -> None:
    load = chain.load(0, 10**8, parallel=4)
    time.sleep(1)
    chain.steer(path(DOMAIN, PLAN, "r1"))
    generation = 1
    before = _received_by_hosts(chain, "fab2")
    for index in range(20):
        generation += 1
        for hop, stop in enumerate(PLAN.stops):
            agent = chain.chains.agents[stop.host]
            back = return_segments(PLAN, DOMAIN, hop, ("r2",)) if index % 2 == 0 else None
            chain.chains.inside(stop.host, partial(set_return, agent, PLAN.number, hop, back, generation))
        chain.steer(path(DOMAIN, PLAN, "r1"))
        time.sleep(0.1)
        load.reports()
    moved = _received_by_hosts(chain, "fab2") - before
    load.end_input()
    reports = load.finish(60)
    assert moved > 10**7, "the answers went through the other plane"
    assert max(max(report["forward_gap_s"], report["backward_gap_s"]) for report in reports) < STALL_S
