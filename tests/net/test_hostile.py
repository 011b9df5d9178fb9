"""A hundred thousand bad packets reach an NSF's host while connections pass it: all are counted, nothing changes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from msl.config import TestbedConfig
from tests.net.chain import Chains, Load, OpenChain, lay, running
from tests.net.hostile import Hostile, Injector, inject

pytestmark = [pytest.mark.root, pytest.mark.slow]

DOMAIN, PLAN = lay()
VICTIM = PLAN.stops[0]
STALL_S = 1.0
# Far less than the machine can carry, so that a stall is one of the network.
LINKS = TestbedConfig(rate_mbit=500)
KINDS = 15
EACH = 5_000


@pytest.fixture(scope="module")
def chains() -> Iterator[Chains]:
    with running(DOMAIN, LINKS) as chains:
        yield chains


@pytest.fixture
def chain(chains: Chains) -> Iterator[OpenChain]:
    with chains.open(PLAN) as chain:
        yield chain


@pytest.fixture
def injector(chains: Chains) -> Iterator[Injector]:
    injector = Injector(chains, "r1", VICTIM.host)
    yield injector
    injector.close()


def begin(chain: OpenChain) -> tuple[Load, dict[tuple[IPv6Address, int], int]]:
    """Start connections that last, and wait for their flows at the victim."""
    load = chain.load(2, 15 * 10**7, parallel=2, stall_s=STALL_S)
    deadline = time.monotonic() + 10
    while len(flows := chain.chains.flows(VICTIM.host)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return load, flows


def check_undisturbed(chain: OpenChain, load: Load, before: dict[tuple[IPv6Address, int], int]) -> None:
    """The connections go on, on their path, and end well."""
    assert load.is_running(), "it was to last longer than the attack"
    now = chain.chains.flows(VICTIM.host)
    assert {client: now.get(client) for client in before} == before
    for report in load.finish(60):
        assert max(report["forward_gap_s"], report["backward_gap_s"]) < STALL_S


def test_malformed_and_misrouted_packets_are_counted_and_disturb_nobody(chain: OpenChain, injector: Injector) -> None:
    chains = chain.chains
    load, flows = begin(chain)
    hostile = Hostile(DOMAIN, PLAN, VICTIM, next(iter(flows)))
    proxy = chains.agents[VICTIM.host].proxy
    before = proxy.drops()
    for reason, builders in hostile.dropped.items():
        packets = (build() for _, build in zip(range(EACH), itertools.cycle(builders), strict=False))
        assert inject(injector, packets, lambda reason=reason: proxy.drops()[reason]) == EACH  # type: ignore[misc]
    assert {reason: count - before[reason] for reason, count in proxy.drops().items() if count} == dict.fromkeys(
        hostile.dropped, EACH
    )
    for _ in range(EACH):
        injector.send(hostile.overtaken())
    check_undisturbed(chain, load, flows)
    assert set(chains.drops()) == {VICTIM.host}


def test_a_syn_flood_of_spoofed_clients_disturbs_nobody(chain: OpenChain, injector: Injector) -> None:
    chains = chain.chains
    load, flows = begin(chain)
    hostile = Hostile(DOMAIN, PLAN, VICTIM, next(iter(flows)))
    proxy = chains.agents[VICTIM.host].proxy
    before = proxy.drops()
    packets = (hostile.syn() for _ in range(100_000 - (KINDS + 1) * EACH))
    for number, packet in enumerate(packets):
        injector.send(packet)
        if number % 200 == 0:
            time.sleep(0.002)
    assert len(chain.load(50, 1000).finish(20)) == 50, "new connections open in the middle of it"
    assert len(proxy.table("flows").keys()) < 100
    check_undisturbed(chain, load, flows)
    # The listener repeats its answers to the last of those whom it believed, and their embryos are gone.
    assert {reason for reason, count in proxy.drops().items() if count > before[reason]} <= {"no_path"}
