"""What hosts measure: ways by probes, links by the kernel's counters, and how soon they tell of what cannot wait."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from msl.config import TestbedConfig
from msl.net.faults import FAULTS, Fault, fault, set_rates
from msl.net.measure.links import Links
from msl.net.measure.prober import Prober
from msl.net.measure.sampler import Errand, Sampler, try_way
from msl.steering.health import Ways
from msl.steering.readings import HostReading, ProbeReading, reading_from
from tests.net.chain import Chains, lay, running

pytestmark = [pytest.mark.root, pytest.mark.slow]

DOMAIN, PLAN = lay()
WAYS = [("n1", way) for way in ((), ("r1",), ("r2",), ("r2", "r2"))]


@pytest.fixture(scope="module")
def chains() -> Iterator[Chains]:
    with running(DOMAIN, TestbedConfig(rate_mbit=1000)) as chains:
        yield chains


def probed(chains: Chains, rounds: int, pause_s: float = 0.02) -> dict[tuple[tuple[str, ...], bool], ProbeReading]:
    """Probes from n0 to n1 over all ways; by way and size."""
    agent = chains.agents["n0"]

    def work() -> tuple[ProbeReading, ...]:
        prober = Prober(DOMAIN, agent.host, agent.inner_mtu + DOMAIN.overhead)
        try:
            prober.probe(WAYS)
            for _ in range(rounds):
                prober.send()
                time.sleep(pause_s)
                prober.receive()
            time.sleep(0.15)
            prober.receive()
            return prober.readings()
        finally:
            prober.close()

    return {(reading.way, reading.full_size): reading for reading in chains.inside("n0", work)}


def test_every_way_answers_in_both_sizes(chains: Chains) -> None:
    found = probed(chains, 20)
    assert len(found) == 8
    for (way, full), reading in found.items():
        assert reading.sent == (10 if full else 20), way
        assert reading.answered == reading.in_a_row == reading.sent
        assert reading.missed == 0
        assert reading.rtt_ms is not None
        assert 0 < reading.rtt_ms < 100
    assert chains.drops() == {}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_failing_router_is_found_by_the_ways_through_it_and_no_others(chains: Chains, kind: Fault) -> None:
    with fault(chains.bed, "r1", kind, 1):
        found = probed(chains, 12)
    for (way, full), reading in found.items():
        through = "r1" in way or not way
        lost = through and (full or kind != "large_lost")
        assert (reading.answered == 0) == lost, (way, full, reading)
        assert (reading.missed > 0) == lost
    again = probed(chains, 6)
    assert all(reading.answered == reading.sent for reading in again.values()), "the fault is mended"


def test_a_way_is_tried_with_packets_of_full_size(chains: Chains) -> None:
    agent = chains.agents["n0"]
    assert chains.inside("n0", lambda: try_way(agent, "n1", ("r1",), 0.5)) is None
    with fault(chains.bed, "r1", "large_lost", 1):
        assert chains.inside("n0", lambda: try_way(agent, "n1", ("r1",), 0.5)) == "carries no packets of full size"
        assert chains.inside("n0", lambda: try_way(agent, "n1", ("r2",), 0.5)) is None
    with fault(chains.bed, "r1", "black_hole", 1):
        assert chains.inside("n0", lambda: try_way(agent, "n1", ("r1",), 0.3)) == "carries no packets"


def test_links_tell_what_lies_behind_them_and_remember_it_when_they_are_down(chains: Chains) -> None:
    routers = {router.name: router.sid for router in DOMAIN.routers}
    peers = {host.name: host.address for host in DOMAIN.hosts if host.name != "n1"}
    links = chains.inside("n1", lambda: Links(chains.agents["n1"].interfaces, routers, peers))
    try:
        first, second = links.readings()
        assert (first.interface, first.routers, first.up, first.rate_mbit) == ("fab1", ("r1",), True, 1000.0)
        assert (second.interface, second.routers, second.up) == ("fab2", ("r2",), True)
        assert links.defaults == dict.fromkeys(peers, "r1")
        with fault(chains.bed, "r1", "link_down", 1):
            assert chains.inside("n1", links.sample), "a change is told"
            chains.inside("n1", links.look_behind)
            first, second = links.readings()
            assert (first.routers, first.up) == (("r1",), False)
            assert (second.routers, second.up) == (("r2",), True)
        assert chains.inside("n1", links.sample)
        assert links.readings()[0].up
    finally:
        links.close()


def test_rates_follow_the_traffic(chains: Chains) -> None:
    """40 Mbit/s of probes of full size."""
    agent = chains.agents["n0"]
    routers = {router.name: router.sid for router in DOMAIN.routers}

    def work() -> tuple[float, float]:
        links = Links(agent.interfaces, routers, {})
        prober = Prober(DOMAIN, agent.host, agent.inner_mtu + DOMAIN.overhead)
        try:
            prober.probe([("n1", ("r2",))])
            begin, before = time.monotonic(), prober.bytes_sent
            while time.monotonic() - begin < 2.0:
                for _ in range(2):
                    prober.send()
                time.sleep(0.01)
                prober.receive()
                links.sample()
            sent_mbit = (prober.bytes_sent - before) * 8e-6 / (time.monotonic() - begin)
            return links.readings()[1].out_mbit, sent_mbit
        finally:
            prober.close()
            links.close()

    measured, sent = chains.inside("n0", work)
    assert sent > 1
    assert measured == pytest.approx(sent, rel=0.3)


@pytest.fixture
def sampler(chains: Chains) -> Iterator[Sampler]:
    agent = chains.agents["n0"]
    chains.inside("n0", lambda: agent.add_chain(PLAN))
    errand = Errand(PLAN.number, tuple(WAYS), (("n1", ()),), 0.05, 3)
    sampler = chains.inside("n0", lambda: Sampler(agent, PLAN, errand))
    yield sampler
    sampler.close()
    chains.inside("n0", lambda: agent.remove_chain(PLAN.number))


def test_a_sampler_tells_at_once_of_a_way_in_use_that_falls_silent(chains: Chains, sampler: Sampler) -> None:
    number, _ = sampler.observe(0, 0.0)
    time.sleep(0.5)
    number, reading = sampler.observe(number, 0.0)
    assert not Ways([reading], 3).why_dead("n0", "n1", (), {})
    with fault(chains.bed, "r1", "black_hole", 1):
        begin = time.monotonic()
        number, reading = sampler.observe(number, 10.0)
        assert time.monotonic() - begin < 2.0, "not only when the patience is over"
        why = Ways([reading], 3).why_dead("n0", "n1", (), {})
    assert why == "probes from n0 to n1 as the routes lead have no answer"
    assert Ways([reading], 3).is_proven("n0", "n1", ("r2",))


def test_a_sampler_is_patient_while_nothing_happens(sampler: Sampler) -> None:
    number, _ = sampler.observe(0, 0.0)
    time.sleep(0.3)
    begin = time.monotonic()
    later, reading = sampler.observe(number, 0.5)
    assert time.monotonic() - begin >= 0.45
    assert later > number
    assert isinstance(reading, HostReading)
    assert {(probe.peer, probe.way) for probe in reading.probes} == set(WAYS)


def test_another_errand_keeps_what_is_known_of_the_ways_that_stay(sampler: Sampler) -> None:
    time.sleep(0.5)
    errand = Errand(PLAN.number, (("n1", ("r2",)), ("n2", ("r2",))), (), 0.05, 3)
    sampler.change(errand)
    _, reading = sampler.observe(0, 0.0)
    sent = {(probe.peer, probe.full_size): probe.sent for probe in reading.probes}
    assert sent["n1", False] > 3
    assert sent["n2", False] <= 1


def test_the_rate_of_all_links_can_be_changed(chains: Chains) -> None:
    routers = {router.name: router.sid for router in DOMAIN.routers}
    try:
        set_rates(chains.bed, 50)
        links = chains.inside("n2", lambda: Links(chains.agents["n2"].interfaces, routers, {}))
        assert [reading.rate_mbit for reading in links.readings()] == [50.0, 50.0]
        links.close()
    finally:
        set_rates(chains.bed, 1000)


def test_readings_survive_the_way_through_json(sampler: Sampler) -> None:
    _, reading = sampler.observe(0, 0.0)
    assert reading_from(json.loads(json.dumps(reading.document()))) == reading
