"""The proxy's ingress: what passes, and what packets on their way to the service leave behind."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address

import pytest

from msl.net.sfc.layout import DELIVER_MARK, Outer, Way
from msl.net.sfc.maps import run_program
from tests.net.datapath import CLIENT, DOMAIN, HEAD_END, HERE, MIDDLE, OK, PORT, WAYPOINTS, Datapath, stop_here
from tests.net.packets import (
    ACK,
    ECHO_REQUEST,
    ETH_LEN,
    ROUTING,
    SYN,
    TCP,
    Ends,
    Ip,
    encapsulated,
    frame,
    icmpv6,
    ipv6,
    srh,
    tcp,
    udp,
)
from tests.net.passages import ALIASED, AT_LAST, AT_MIDDLE, NSFS, SINKS, Passage

CLOCK_MONOTONIC_COARSE = 6  # linux/time.h
pytestmark = pytest.mark.root

OWN_ADDRESS, NEIGHBOUR = DOMAIN.host(HERE).address, DOMAIN.host("n2").address
FOREIGN, SOLICITED = IPv6Address("2001:db8::1"), IPv6Address("ff02::1:ff00:1")
TO_OWN_ADDRESS: Ends = (CLIENT, 1000, OWN_ADDRESS, PORT)
AT_A_HOOK_ONLY = "no_listener"
"""What a test run says instead of handing a packet to a listener, when all else is done; see `datapath`."""


def to(destination: IPv6Address, source: IPv6Address = CLIENT) -> bytes:
    return frame(tcp((source, 1000, destination, PORT), SYN))


@pytest.mark.parametrize(
    "passing",
    [
        pytest.param(frame(bytes([0x45]) + bytes(19), 0x0800), id="IPv4"),
        pytest.param(frame(bytes(46), 0x0806), id="ARP"),
        pytest.param(to(NEIGHBOUR), id="for another host"),
        pytest.param(to(FOREIGN), id="for another network"),
        pytest.param(to(OWN_ADDRESS), id="for the host's address"),
        pytest.param(to(OWN_ADDRESS, FOREIGN), id="for the host's address from outside"),
        pytest.param(frame(udp(TO_OWN_ADDRESS)), id="UDP for the host's address"),
        pytest.param(frame(icmpv6(CLIENT, OWN_ADDRESS, b"", ECHO_REQUEST)), id="ping for the host's address"),
        pytest.param(frame(icmpv6(CLIENT, OWN_ADDRESS, tcp(TO_OWN_ADDRESS))), id="ICMPv6 error for the host's address"),
        pytest.param(frame(icmpv6(IPv6Address("fe80::1"), SOLICITED, b"", 135)), id="neighbour solicitation"),
        pytest.param(encapsulated(HEAD_END, MIDDLE.sids, 2, tcp(AT_MIDDLE.ends)), id="SRH for another host's SID"),
        pytest.param(encapsulated(HEAD_END, WAYPOINTS, 1, tcp(AT_MIDDLE.ends)), id="SRH for a router's SID"),
        pytest.param(frame(ipv6(CLIENT, NEIGHBOUR, ROUTING, b"")), id="half an SRH for another host"),
    ],
)
def test_what_is_not_for_a_sid_of_this_host_passes_untouched(datapath: Datapath, passing: bytes) -> None:
    assert datapath.put(passing) == (OK, passing, 0, None)
    assert not datapath.table("embryos")


@contextmanager
def changed_settings(datapath: Datapath, **values: int) -> Iterator[None]:
    table, zero = datapath.proxy.table("settings"), ctypes.c_uint32(0)
    kept, changed = table.get(zero), table.get(zero)
    assert kept is not None
    for name, value in values.items():
        assert hasattr(changed, name)
        setattr(changed, name, value)
    table.put(zero, changed)
    try:
        yield
    finally:
        table.put(zero, kept)


def headers(outer: Outer, segments: int) -> bytes:
    """A path's headers as they will stand in a packet."""
    return bytes(outer)[: 48 + 16 * segments]


@pytest.mark.parametrize("passage", [*NSFS, *SINKS], ids=str)
def test_a_syn_is_decapsulated_and_teaches_its_path(datapath: Datapath, passage: Passage) -> None:
    arriving = passage.arriving(tcp(passage.ends, SYN), tag=7)
    outcome = datapath.put(arriving)
    assert outcome.packet == tcp(passage.local_ends, SYN)
    assert outcome.frame[:ETH_LEN] == arriving[:ETH_LEN]
    assert outcome.mark == (0 if passage.is_sink else DELIVER_MARK)
    assert outcome.reason == (None if passage.is_sink else AT_A_HOOK_ONLY)

    path = datapath.path(datapath.flow(passage.local_ends, "embryos"))
    assert (path.arrival.source.ip, path.arrival.destination.ip) == (HEAD_END, passage.stop.sid)
    assert (path.arrival.travel, path.arrival.generation) == (passage.travel, 7)
    assert headers(path.backward, path.backward_count) == passage.back(tag=7)[ETH_LEN:]
    if passage.is_sink:
        assert path.forward_count == 0
    else:
        assert headers(path.forward, path.forward_count) == passage.onward(tag=7)[ETH_LEN:]
    assert len(datapath.table("embryos")) == len(datapath.table("paths")) == 1
    assert not datapath.table("flows")


@pytest.mark.parametrize("passage", [AT_MIDDLE, AT_LAST, ALIASED], ids=str)
def test_packets_are_counted_for_their_sid_and_their_flow(datapath: Datapath, passage: Passage) -> None:
    begin_ns = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
    sent = [passage.arriving(tcp(passage.ends, flags, b"x" * size)) for flags, size in ((SYN, 0), (ACK, 9), (ACK, 999))]
    for arriving in sent:
        datapath.put(arriving)
    flow = datapath.flow(passage.local_ends, "embryos")
    assert flow is not None
    assert begin_ns <= flow.last_seen <= time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
    for counters in (flow, datapath.traffic(passage.stop.sid)):
        assert list(counters.packets) == [3 if way == Way.IN_FORWARD else 0 for way in Way]
        assert counters.bytes[Way.IN_FORWARD] == sum(map(len, sent))


@pytest.mark.parametrize("passage", [*NSFS, *SINKS], ids=str)
def test_a_packet_of_a_socket_is_decapsulated_and_delivered(datapath: Datapath, passage: Passage) -> None:
    with datapath.established(passage.local_ends):
        outcome = datapath.put(passage.arriving(tcp(passage.ends, ACK, b"some bytes")))
    assert outcome.verdict == OK
    assert outcome.packet == tcp(passage.local_ends, ACK, b"some bytes")
    assert Ip.parse(outcome.packet).checksum_is_right
    assert outcome.mark == (0 if passage.is_sink else DELIVER_MARK)


@pytest.mark.parametrize("is_virtual", [0, 1])
def test_many_sizes_come_out_whole(datapath: Datapath, is_virtual: int) -> None:
    with changed_settings(datapath, is_virtual=is_virtual), datapath.established(AT_MIDDLE.local_ends):
        for size in (0, 1, 2, 3, 100, 1000, 1747, 2500):
            inner = tcp(AT_MIDDLE.ends, ACK, b"\xa5" * size)
            assert datapath.put(AT_MIDDLE.arriving(inner)).packet == inner


def test_padding_behind_a_packet_is_left_to_the_kernel(datapath: Datapath) -> None:
    inner = tcp(AT_LAST.ends, SYN)
    outcome = datapath.put(AT_LAST.arriving(inner) + bytes(6))
    assert (outcome.verdict, outcome.packet) == (OK, inner + bytes(6))


def test_the_neighbour_of_a_sid_is_nobodys(datapath: Datapath) -> None:
    travel = (*MIDDLE.sids[:1], IPv6Address(int(stop_here(MIDDLE).sid) + 1), MIDDLE.sids[2])
    assert datapath.put(encapsulated(HEAD_END, travel, 1, tcp(AT_MIDDLE.ends, SYN))).reason == "unknown_sid"


def test_without_settings_everything_passes(datapath: Datapath) -> None:
    """A host between the loading of the programs and the agent's first write."""
    with changed_settings(datapath, block=0, block_mask=0, locator=0):
        arriving = AT_MIDDLE.arriving(tcp(AT_MIDDLE.ends, SYN))
        assert datapath.put(arriving) == (OK, arriving, 0, None)


def test_another_routing_type_passes_in_transit(datapath: Datapath) -> None:
    passing = frame(ipv6(CLIENT, NEIGHBOUR, ROUTING, srh(MIDDLE.sids, 1, routing_type=3, next_header=TCP)))
    assert datapath.put(passing) == (OK, passing, 0, None)


def test_run_program_of_the_package_says_the_same(datapath: Datapath) -> None:
    arriving = AT_LAST.arriving(tcp(AT_LAST.ends, SYN))
    verdict, left, nanoseconds = datapath.do(lambda: run_program(datapath.proxy.program("ingress"), arriving))
    assert (verdict, left) == (OK, datapath.put(arriving).frame)
    assert nanoseconds > 0
