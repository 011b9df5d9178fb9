"""The proxy's ingress: packets on their way back from the service, and ICMPv6 errors of both directions."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address

import pytest

from msl.net.sfc.layout import DELIVER_MARK, Way
from tests.net.datapath import CLIENT, CLIENT_PORT, DOMAIN, HERE, MIDDLE, OK, OWN, PORT, SHOT, Datapath
from tests.net.packets import ACK, SYN, Ends, Ip, encapsulated, icmpv6, mirrored, tcp
from tests.net.passages import ALIASED, AT_FIRST, AT_LAST, AT_MIDDLE, NSFS, Passage

pytestmark = pytest.mark.root

ROUTER = IPv6Address("fd00:6d73:6c:f01::1")
OWN_ADDRESS = DOMAIN.host(HERE).address
OWN_ENDS: Ends = (OWN_ADDRESS, CLIENT_PORT, OWN.service, PORT)
ERRORS = pytest.mark.parametrize(("kind", "parameter"), [(1, 4), (2, 1280), (3, 0), (4, 40), (127, 0)])


def learn(datapath: Datapath, passage: Passage) -> None:
    datapath.put(passage.arriving(tcp(passage.ends, SYN)))
    assert datapath.flow(passage.local_ends, "embryos")


def to_head_end(inner: bytes, way_back: Sequence[IPv6Address] = ()) -> bytes:
    return encapsulated(OWN.sids[0], (*way_back, DOMAIN.host(HERE).decap), 0, inner)


def too_big(ends: Ends, sender: IPv6Address | None = None, kind: int = 2, parameter: int = 1280) -> bytes:
    """What the receiver of a packet between these ends, or a router on its way, says to its sender."""
    return icmpv6(sender or ends[2], ends[0], tcp(ends, ACK, b"far too long" * 9), kind, parameter)


@pytest.mark.parametrize("passage", NSFS, ids=str)
def test_an_answer_of_a_known_flow_is_decapsulated_for_the_clients_socket(datapath: Datapath, passage: Passage) -> None:
    learn(datapath, passage)
    outcome = datapath.put(passage.answering(tcp(mirrored(passage.ends), SYN | ACK, b"some bytes")))
    assert (outcome.verdict, outcome.mark) == (OK, DELIVER_MARK)
    assert outcome.packet == tcp(mirrored(passage.local_ends), SYN | ACK, b"some bytes")
    assert Ip.parse(outcome.packet).checksum_is_right


@pytest.mark.parametrize("passage", [AT_MIDDLE, ALIASED], ids=str)
def test_answers_are_counted_apart(datapath: Datapath, passage: Passage) -> None:
    learn(datapath, passage)
    answer = passage.answering(tcp(mirrored(passage.ends)))
    datapath.put(answer)
    for counters in (datapath.flow(passage.local_ends, "embryos"), datapath.traffic(passage.stop.sid)):
        assert counters is not None
        assert list(counters.packets) == [1, 0, 1, 0]
        assert counters.bytes[Way.IN_BACKWARD] == len(answer)


@pytest.mark.parametrize(
    "unknown",
    [
        (CLIENT, CLIENT_PORT + 1, MIDDLE.service, PORT),
        (CLIENT, CLIENT_PORT, MIDDLE.service, PORT + 1),
        (ROUTER, CLIENT_PORT, MIDDLE.service, PORT),
        (CLIENT, PORT, MIDDLE.service, CLIENT_PORT),
    ],
    ids=["another port of the client", "another port of the service", "another client", "ports exchanged"],
)
def test_an_answer_of_an_unknown_flow_is_dropped_and_teaches_nothing(datapath: Datapath, unknown: Ends) -> None:
    learn(datapath, AT_MIDDLE)
    for inner in (tcp(mirrored(unknown)), too_big(unknown), too_big(mirrored(unknown))):
        passage = AT_MIDDLE.answering if inner[6] == 6 or inner[24:40] == unknown[0].packed else AT_MIDDLE.arriving
        outcome = datapath.put(passage(inner))
        assert (outcome.verdict, outcome.reason) == (SHOT, "no_flow")
    assert len(datapath.table("embryos")) == len(datapath.table("paths")) == 1


@ERRORS
@pytest.mark.parametrize("sender", [None, ROUTER], ids=["of the service", "of a router"])
@pytest.mark.parametrize("passage", [AT_FIRST, AT_MIDDLE, ALIASED], ids=str)
def test_an_error_for_the_client_shows_the_service_as_the_socket_sees_it(
    datapath: Datapath, passage: Passage, sender: IPv6Address | None, kind: int, parameter: int
) -> None:
    learn(datapath, passage)
    outcome = datapath.put(passage.answering(too_big(passage.ends, sender, kind, parameter)))
    assert (outcome.verdict, outcome.mark) == (OK, DELIVER_MARK)
    assert outcome.packet == too_big(passage.local_ends, sender, kind, parameter)
    assert Ip.parse(outcome.packet).checksum_is_right


@ERRORS
@pytest.mark.parametrize("sender", [None, ROUTER], ids=["of the client", "of a router"])
@pytest.mark.parametrize("passage", [AT_FIRST, AT_MIDDLE, ALIASED, AT_LAST], ids=str)
def test_an_error_for_the_service_is_for_the_address_that_the_socket_has(
    datapath: Datapath, passage: Passage, sender: IPv6Address | None, kind: int, parameter: int
) -> None:
    learn(datapath, passage)
    outcome = datapath.put(passage.arriving(too_big(mirrored(passage.ends), sender, kind, parameter)))
    assert (outcome.verdict, outcome.mark) == (OK, 0 if passage.is_sink else DELIVER_MARK)
    assert outcome.packet == too_big(mirrored(passage.local_ends), sender, kind, parameter)
    assert Ip.parse(outcome.packet).checksum_is_right


def test_an_error_never_teaches_a_path(datapath: Datapath) -> None:
    learn(datapath, AT_MIDDLE)
    before = datapath.flow(AT_MIDDLE.local_ends, "embryos")
    assert before is not None
    datapath.put(AT_MIDDLE.changed().arriving(too_big(mirrored(AT_MIDDLE.ends)), tag=1))
    after = datapath.flow(AT_MIDDLE.local_ends, "embryos")
    assert after is not None
    assert (after.path, len(datapath.table("paths"))) == (before.path, 1)


@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(tcp(mirrored(OWN_ENDS), ACK, b"some bytes"), id="TCP"),
        pytest.param(tcp((OWN.service, 80, CLIENT, 90), SYN | ACK), id="to another of its addresses"),
        pytest.param(too_big(OWN_ENDS), id="an error of the service"),
        pytest.param(too_big(OWN_ENDS, ROUTER), id="an error of a router"),
    ],
)
@pytest.mark.parametrize("way_back", [(), (ROUTER, OWN.sids[0])], ids=["alone", "after others"])
def test_the_head_end_takes_what_comes_from_its_services(
    datapath: Datapath, inner: bytes, way_back: Sequence[IPv6Address]
) -> None:
    arriving = to_head_end(inner, way_back)
    outcome = datapath.put(arriving)
    assert outcome == (OK, arriving[:14] + inner, 0, None)
    counters = datapath.traffic(DOMAIN.host(HERE).decap)
    assert list(counters.packets) == [0, 0, 1, 0]
    assert counters.bytes[Way.IN_BACKWARD] == len(arriving)


@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(tcp((ROUTER, PORT, OWN_ADDRESS, 9)), id="of no service"),
        pytest.param(tcp((MIDDLE.service, PORT, OWN_ADDRESS, 9)), id="of a service that this host is an NSF of"),
        pytest.param(tcp(OWN_ENDS), id="to its service"),
        pytest.param(too_big(mirrored(OWN_ENDS)), id="an error about a packet from its service"),
        pytest.param(too_big((OWN_ADDRESS, 9, ROUTER, 9), OWN.service), id="an error about a packet to no service"),
    ],
)
def test_the_head_end_takes_nothing_else(datapath: Datapath, inner: bytes) -> None:
    arriving = to_head_end(inner)
    assert datapath.put(arriving) == (SHOT, arriving, 0, "service")
