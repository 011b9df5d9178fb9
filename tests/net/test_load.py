"""Chains under load: everything arrives, where it belongs, and nothing is left of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from msl.net.sfc.fabric import SfcFabric
from tests.net.chain import Chains, OpenChain, lay, running

pytestmark = [pytest.mark.root, pytest.mark.slow]

DOMAIN, PLAN = lay()


@pytest.fixture(scope="module")
def chains() -> Iterator[Chains]:
    with running(DOMAIN) as chains:
        yield chains


@pytest.fixture
def chain(chains: Chains) -> Iterator[OpenChain]:
    with chains.open(PLAN) as chain:
        yield chain


@pytest.fixture(autouse=True)
def _nothing_is_dropped_and_nothing_is_left(chains: Chains) -> Iterator[None]:
    yield
    assert chains.drops() == {}
    assert chains.checksum_errors() == 0
    chains.wait_until_forgotten()


@pytest.mark.timeout(600)
def test_twenty_connections_carry_a_gigabyte_each_way_at_once(chain: OpenChain) -> None:
    load = chain.load(20, 10**9, parallel=20)
    assert len(load.finish(550, chain.chains.sweep)) == 20


def test_sixty_four_connections_at_once_through_copying_nsfs(chains: Chains) -> None:
    with chains.open(PLAN, copy=True) as chain:
        load = chain.load(256, 5 * 10**6, parallel=64)
        assert len(load.finish(120, chains.sweep)) == 256


def test_a_port_can_be_used_again_at_once_when_the_sink_has_closed_first(chains: Chains) -> None:
    # As with a plain server, TIME_WAIT is at the end that closed first; here also at all NSFs.
    target, host, sink = (str(PLAN.service), PLAN.port), DOMAIN.host(PLAN.source), SfcFabric(PLAN, PLAN.stops[-1].hop)
    with chains.open(PLAN, sink=False), chains.inside(PLAN.stops[-1].host, sink.listen) as listener:
        for _ in range(3):
            client = chains.inside(
                PLAN.source, lambda: socket.create_connection(target, 5, (str(host.address), 40_000))
            )
            with client:
                listener.accept()[0].close()
                assert client.recv(1) == b""
            time.sleep(0.2)  # until the client's end has reached all


def test_five_thousand_connections_in_a_row(chain: OpenChain) -> None:
    load = chain.load(5000, 1000)
    assert len(load.finish(120, chain.chains.sweep)) == 5000
