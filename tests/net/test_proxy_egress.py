"""The proxy's egress, which encapsulates what a chain's sockets send, and its edge, which keeps strangers out."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from msl.net.sfc.layout import Way
from tests.net.datapath import (
    CLIENT,
    CLIENT_PORT,
    DOMAIN,
    FABRIC_MTU,
    HERE,
    MIDDLE,
    OK,
    PORT,
    REDIRECT,
    Datapath,
    Outcome,
)
from tests.net.packets import ACK, ETH_LEN, NONE, ROUTING, SYN, Ends, Srv6, frame, icmpv6, ipv6, mirrored, srh, tcp, udp
from tests.net.passages import ALIASED, AT_FIRST, AT_LAST, AT_MIDDLE, NSFS, SINKS, Passage

pytestmark = pytest.mark.root

FOREIGN, OTHER = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
ALL_ROUTERS, LINK_LOCAL = IPv6Address("ff02::2"), IPv6Address("fe80::1")
TAG = 515


def learn(datapath: Datapath, passage: Passage) -> None:
    datapath.put(passage.arriving(tcp(passage.ends, SYN), tag=TAG))


def send(datapath: Datapath, packet: bytes) -> tuple[int, bytes]:
    """Put a packet of a local socket through; verdict, and the frame without its flow label."""
    outcome: Outcome = datapath.put(frame(packet), "egress")
    flags_and_label = outcome.frame[ETH_LEN : ETH_LEN + 4]
    assert flags_and_label[0] == 0x60
    assert flags_and_label[1] & 0xF0 == 0
    assert outcome.mark == 0
    return outcome.verdict, outcome.frame[: ETH_LEN + 1] + bytes(3) + outcome.frame[ETH_LEN + 4 :]


def label(datapath: Datapath, ends: Ends, payload: bytes = b"") -> int:
    return Srv6.parse(datapath.put(frame(tcp(ends, ACK, payload)), "egress").frame).ip.label


@pytest.mark.parametrize("size", [0, 1, 1500])
@pytest.mark.parametrize("passage", NSFS, ids=str)
def test_what_goes_to_the_service_leaves_for_the_next_segment(datapath: Datapath, passage: Passage, size: int) -> None:
    learn(datapath, passage)
    verdict, left = send(datapath, tcp(passage.local_ends, ACK, b"\xa5" * size))
    assert verdict == REDIRECT
    assert left == passage.onward(tcp(passage.ends, ACK, b"\xa5" * size), TAG)
    assert Srv6.parse(left).inner == tcp(passage.ends, ACK, b"\xa5" * size)


@pytest.mark.parametrize("size", [0, 1, 1500])
@pytest.mark.parametrize("passage", [*NSFS, *SINKS], ids=str)
def test_what_goes_to_the_client_leaves_for_the_segment_before(datapath: Datapath, passage: Passage, size: int) -> None:
    learn(datapath, passage)
    verdict, left = send(datapath, tcp(mirrored(passage.local_ends), ACK, b"\xa5" * size))
    assert verdict == REDIRECT
    assert left == passage.back(tcp(mirrored(passage.ends), ACK, b"\xa5" * size), TAG)


@pytest.mark.parametrize("passage", [AT_FIRST, ALIASED], ids=str)
def test_errors_leave_with_the_service_address_of_the_wire(datapath: Datapath, passage: Passage) -> None:
    def errors(ends: Ends) -> tuple[bytes, bytes]:
        client, service = ends[0], ends[2]
        return icmpv6(client, service, tcp(mirrored(ends), ACK)), icmpv6(service, client, tcp(ends, ACK))

    learn(datapath, passage)
    (for_service, for_client), local = errors(passage.ends), errors(passage.local_ends)
    assert send(datapath, local[0]) == (REDIRECT, passage.onward(for_service, TAG))
    assert send(datapath, local[1]) == (REDIRECT, passage.back(for_client, TAG))


def test_an_error_of_this_host_itself_keeps_its_source(datapath: Datapath) -> None:
    learn(datapath, ALIASED)
    own = DOMAIN.host(HERE).address
    local, wire = (icmpv6(own, CLIENT, tcp(ends, ACK)) for ends in (ALIASED.local_ends, ALIASED.ends))
    assert send(datapath, local) == (REDIRECT, ALIASED.back(wire, TAG))


@pytest.mark.parametrize("passage", [AT_MIDDLE, ALIASED], ids=str)
def test_both_directions_are_counted_apart(datapath: Datapath, passage: Passage) -> None:
    learn(datapath, passage)
    forward, backward = tcp(passage.local_ends, ACK, bytes(7)), tcp(mirrored(passage.local_ends))
    for packet in (forward, forward, backward):
        send(datapath, packet)
    for counters in (datapath.flow(passage.local_ends, "embryos"), datapath.traffic(passage.stop.sid)):
        assert counters is not None
        assert list(counters.packets) == [1, 2, 0, 1]
        assert counters.bytes[Way.OUT_FORWARD] == 2 * len(frame(forward))
        assert counters.bytes[Way.OUT_BACKWARD] == len(frame(backward))


def test_a_packet_as_large_as_the_link_takes_goes_out(datapath: Datapath) -> None:
    learn(datapath, AT_MIDDLE)
    room = FABRIC_MTU - len(AT_MIDDLE.onward(tcp(AT_MIDDLE.ends))) + ETH_LEN
    verdict, left = send(datapath, tcp(AT_MIDDLE.local_ends, ACK, bytes(room)))
    assert (verdict, len(left) - ETH_LEN) == (REDIRECT, FABRIC_MTU)


def test_the_flow_label_is_that_of_the_flow(datapath: Datapath) -> None:
    learn(datapath, AT_MIDDLE)
    other = (CLIENT, CLIENT_PORT + 1, MIDDLE.service, PORT)
    datapath.put(AT_MIDDLE.arriving(tcp(other, SYN), tag=TAG))
    first = label(datapath, AT_MIDDLE.ends)
    assert first
    assert first == label(datapath, AT_MIDDLE.ends, b"more")
    assert first != label(datapath, other)


@pytest.mark.parametrize(
    "passing",
    [
        pytest.param(frame(bytes([0x45]) + bytes(19), 0x0800), id="IPv4"),
        pytest.param(frame(icmpv6(LINK_LOCAL, ALL_ROUTERS, b"", 133)), id="router solicitation"),
        pytest.param(frame(ipv6(LINK_LOCAL, ALL_ROUTERS, 0, bytes(24))), id="multicast listener report"),
        pytest.param(frame(ipv6(LINK_LOCAL, ALL_ROUTERS, NONE, b"")), id="no next header, to a group"),
    ],
)
def test_the_kernels_own_chatter_passes_the_egress(datapath: Datapath, passing: bytes) -> None:
    assert datapath.put(passing, "egress") == (OK, passing, 0, None)


@pytest.mark.parametrize(
    "passing",
    [
        pytest.param(frame(bytes([0x45]) + bytes(19), 0x0800), id="IPv4"),
        pytest.param(frame(tcp((FOREIGN, 9, OTHER, 9), SYN)), id="TCP"),
        pytest.param(frame(udp((FOREIGN, 9, OTHER, 9))), id="UDP"),
        pytest.param(frame(icmpv6(LINK_LOCAL, ALL_ROUTERS, b"", 133)), id="router solicitation"),
        pytest.param(frame(ipv6(FOREIGN, OTHER, ROUTING, srh((OTHER,), 0, routing_type=2))), id="another routing type"),
        pytest.param(frame(ipv6(FOREIGN, OTHER, ROUTING, b"")), id="no routing header, though announced"),
        pytest.param(frame(tcp((FOREIGN, 9, DOMAIN.block[0] - 1, 9))), id="the address before the block"),
        pytest.param(frame(tcp((FOREIGN, 9, DOMAIN.block[-1] + 1, 9))), id="the address behind the block"),
    ],
)
def test_ordinary_packets_pass_the_edge(datapath: Datapath, passing: bytes) -> None:
    assert datapath.put(passing, "edge") == (OK, passing, 0, None)


@pytest.mark.parametrize("address", [DOMAIN.block[0], DOMAIN.block[-1]], ids=["first", "last"])
def test_the_edge_keeps_the_whole_block_out(datapath: Datapath, address: IPv6Address) -> None:
    for ends in ((FOREIGN, 9, address, 9), (address, 9, FOREIGN, 9)):
        assert datapath.put(frame(tcp(ends)), "edge").reason == "outside"


def test_a_path_that_was_forgotten_is_missed(datapath: Datapath) -> None:
    learn(datapath, AT_LAST)
    for number in datapath.proxy.table("paths"):
        datapath.proxy.table("paths").remove(number)
    assert datapath.put(frame(tcp(mirrored(AT_LAST.ends))), "egress").reason == "no_path"
