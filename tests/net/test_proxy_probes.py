"""The proxy's SIDs for probes: others' turn here and go on, the host's own end here, and nothing else does."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from tests.net.datapath import CLIENT, DOMAIN, HERE, OK, REDIRECT, SHOT, Datapath
from tests.net.packets import NONE, Srv6, encapsulated, frame, ipv6, srh, tcp, udp
from tests.net.passages import R1, R2

pytestmark = pytest.mark.root

ME, OTHER = DOMAIN.host(HERE), DOMAIN.host("n0")
PROBE = udp((ME.address, 4000, OTHER.address, 4000), b"a probe")
BACK = udp((OTHER.address, 4000, ME.address, 4000), b"a probe")


@pytest.mark.parametrize(
    ("travel", "left"),
    [((ME.turn, OTHER.probes), 1), ((R1, ME.turn, R1, OTHER.probes), 2), ((R1, R2, ME.turn, R2, R1, OTHER.probes), 3)],
)
def test_a_probe_turns_here_and_goes_on_to_its_next_segment(
    datapath: Datapath, travel: tuple[IPv6Address, ...], left: int
) -> None:
    arriving = encapsulated(OTHER.address, travel, left, PROBE)
    outcome = datapath.put(arriving)
    assert (outcome.verdict, outcome.reason) == (REDIRECT, None)
    seen = Srv6.parse(outcome.frame)
    assert (seen.ip.source, seen.ip.destination) == (OTHER.address, travel[len(travel) - left])
    assert (seen.left, seen.travel, seen.inner, seen.ip.hop_limit) == (left - 1, travel, PROBE, 63)


def test_a_probe_whose_path_ends_at_the_turn_is_dropped(datapath: Datapath) -> None:
    assert datapath.put(encapsulated(OTHER.address, (ME.turn,), 0, PROBE)).reason == "sl_zero"


def test_a_probe_that_has_passed_too_many_routers_is_dropped(datapath: Datapath) -> None:
    inner = srh((ME.turn, OTHER.probes), 1) + PROBE
    packet = bytearray(ipv6(OTHER.address, ME.turn, 43, inner))
    packet[7] = 1
    assert datapath.put(frame(bytes(packet))).reason == "no_route"


def test_an_own_probe_is_handed_to_this_host(datapath: Datapath) -> None:
    outcome = datapath.put(encapsulated(ME.address, (OTHER.turn, R1, ME.probes), 0, BACK))
    assert (outcome.verdict, outcome.mark) == (OK, 0)
    assert outcome.packet == BACK


@pytest.mark.parametrize(
    "inner",
    [
        tcp((OTHER.address, 4000, ME.address, 22)),
        udp((OTHER.address, 4000, CLIENT, 4000)),
        ipv6(OTHER.address, ME.address, NONE, b""),
    ],
    ids=["tcp", "to another host", "no protocol"],
)
def test_nothing_but_a_datagram_to_this_host_ends_at_the_sid_of_its_probes(datapath: Datapath, inner: bytes) -> None:
    outcome = datapath.put(encapsulated(ME.address, (OTHER.turn, ME.probes), 0, inner))
    assert (outcome.verdict, outcome.reason) == (SHOT, "not_probe")


def test_an_own_probe_that_should_go_on_is_dropped(datapath: Datapath) -> None:
    assert datapath.put(encapsulated(ME.address, (ME.probes, OTHER.turn), 1, BACK)).reason == "sl_left"


def test_probes_leave_no_trace_in_flows_and_paths(datapath: Datapath) -> None:
    datapath.put(encapsulated(OTHER.address, (R1, ME.turn, R1, OTHER.probes), 2, PROBE))
    datapath.put(encapsulated(ME.address, (OTHER.turn, ME.probes), 0, BACK))
    assert [datapath.table(name) for name in ("flows", "embryos", "paths")] == [{}, {}, {}]
