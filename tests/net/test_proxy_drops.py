"""What the proxy drops: nothing of it is decapsulated, nothing is learnt from it, and the reason is counted."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

import pytest

from msl.errors import NetworkError
from msl.net.sfc import layout
from tests.net import packets as p
from tests.net.datapath import (
    CLIENT,
    CLIENT_PORT,
    DOMAIN,
    FABRIC_MTU,
    FIRST,
    HEAD_END,
    HERE,
    LAST,
    MIDDLE,
    OK,
    OWN,
    PORT,
    SHOT,
    TWICE,
    Datapath,
)
from tests.net.packets import ACK, ROUTING, SYN, encapsulated, frame, icmpv6, ipv6, mirrored, srh, tcp, udp
from tests.net.passages import ALIASED, AT_LAST, AT_MIDDLE, R1, R2, Passage

pytestmark = pytest.mark.root

FOREIGN = IPv6Address("2001:db8::1")
BEFORE, SID, BEHIND = MIDDLE.sids
DECAP = DOMAIN.host(HERE).decap
PROBES = DOMAIN.host(HERE).probes
OWN_ADDRESS = DOMAIN.host(HERE).address
SRH = srh(MIDDLE.sids, 1)
INNER = tcp(AT_MIDDLE.ends, SYN)
ABOUT = tcp(mirrored(AT_MIDDLE.ends), ACK, bytes(40))


def to_sid(header: bytes, inner: bytes = INNER, next_header: int = ROUTING, source: IPv6Address = HEAD_END) -> bytes:
    return frame(ipv6(source, SID, next_header, header + inner))


def lying_outside(difference: int) -> bytes:
    """With another length in the outer header than the packet has."""
    return frame(ipv6(HEAD_END, SID, ROUTING, SRH + INNER, length=len(SRH + INNER) + difference))


def holding(inner: bytes) -> bytes:
    return to_sid(SRH, inner)


def holding_next(next_header: int) -> bytes:
    """An inner packet with something else than TCP behind its header, or before the TCP segment."""
    return holding(ipv6(CLIENT, MIDDLE.service, next_header, bytes([p.TCP]) + bytes(7) + INNER[40:]))


def along(travel: Sequence[IPv6Address], chain_ends: p.Ends = AT_MIDDLE.ends, at: IPv6Address = SID) -> bytes:
    return encapsulated(HEAD_END, travel, len(travel) - 1 - list(travel).index(at), tcp(chain_ends, SYN))


LYING = {
    "hdr_ext_len one segment short": srh(MIDDLE.sids, 1, hdr_ext_len=4),
    "hdr_ext_len one segment long": srh(MIDDLE.sids, 1, hdr_ext_len=8),
    "hdr_ext_len odd": srh(MIDDLE.sids, 1, hdr_ext_len=7),
    "hdr_ext_len 0": srh(MIDDLE.sids, 1, hdr_ext_len=0),
    "hdr_ext_len 255": srh(MIDDLE.sids, 1, hdr_ext_len=255),
    "last_entry beyond the list": srh(MIDDLE.sids, 1, last_entry=3),
    "last_entry within the list": srh(MIDDLE.sids, 1, last_entry=1),
    "last_entry 255": srh(MIDDLE.sids, 1, last_entry=255),
    "segments_left beyond the list": srh(MIDDLE.sids, 3),
    "segments_left 255": srh(MIDDLE.sids, 255),
    "no segments": srh((), 0),
    "no segments, last_entry 0": srh((), 0, last_entry=0),
    "17 segments": srh((*(R1,) * 14, *MIDDLE.sids), 1),
    "127 segments": srh((*(R1,) * 124, *MIDDLE.sids), 1),
    "TLVs": srh(MIDDLE.sids, 1, tlvs=bytes([4, 6]) + bytes(6)),
    "TLVs of a segment's length": srh(MIDDLE.sids, 1, tlvs=bytes([4, 14]) + bytes(14)),
}
WRONG = {
    "in another order": (R1, BEHIND, SID, BEFORE),
    "the one before missing": (SID, BEHIND),
    "the one behind missing": (BEFORE, SID, R1),
    "the sink missing": (BEFORE, SID, R2),
    "this one twice": (BEFORE, SID, SID, BEHIND),
    "the one before twice": (BEFORE, BEFORE, SID, BEHIND),
    "the sink twice": (BEFORE, SID, BEHIND, BEHIND),
    "back to the first": (BEFORE, SID, BEFORE, BEHIND),
    "another chain's": (FIRST.sids[1], SID, BEHIND),
}


@dataclass(frozen=True)
class Case:
    """A packet, and why a program drops it."""

    reason: str
    name: str
    frame: bytes
    program: str = "ingress"
    prepare: Callable[[Datapath], object] = lambda datapath: None
    gso_size: int = 0

    def __str__(self) -> str:
        return f"{self.program}: {self.reason}: {self.name}"


def know(passage: Passage) -> Callable[[Datapath], object]:
    return lambda datapath: datapath.put(passage.arriving(tcp(passage.ends, SYN)))


def fill_paths(datapath: Datapath) -> None:
    table = datapath.proxy.table("paths")
    for number in range(2048):
        table.put(ctypes.c_uint64(number), table.zero())


ASTRAY = Passage("by a waypoint outside", MIDDLE, 0, ((), (), (FOREIGN,)))
LEAVING = tcp(AT_MIDDLE.local_ends, ACK)
FILLING = FABRIC_MTU - 40 - 8 - 3 * 16 - 60
INGRESS = [
    Case("outside", "source outside, for a SID", to_sid(SRH, source=FOREIGN)),
    Case("outside", "source outside, in transit", encapsulated(FOREIGN, MIDDLE.sids, 2, INNER)),
    Case("outside", "source of the neighbouring block", encapsulated(HEAD_END - (1 << 96), MIDDLE.sids, 1, INNER)),
    Case("truncated", "outer length short of the inner packet", lying_outside(-1)),
    Case("truncated", "inner length beyond the packet", holding(INNER[:4] + b"\0\x15" + INNER[6:])),
    Case("truncated", "a TCP header of 13 bytes", holding(ipv6(CLIENT, MIDDLE.service, p.TCP, INNER[40:53]))),
    Case("truncated", "an ICMPv6 error about nothing", holding(icmpv6(CLIENT, MIDDLE.service, b""))),
    *(Case("no_srh", f"routing type {kind}", to_sid(srh(MIDDLE.sids, 1, routing_type=kind))) for kind in (0, 2, 3, 5)),
    Case("no_srh", "TCP for a SID", frame(tcp((CLIENT, 9, SID, 9), SYN))),
    Case("no_srh", "UDP for a SID", frame(udp((CLIENT, 9, SID, 9)))),
    Case("no_srh", "ping for a SID", frame(icmpv6(CLIENT, SID, b"", p.ECHO_REQUEST))),
    Case("no_srh", "TCP for the head-end", frame(tcp((CLIENT, 9, DECAP, 9), SYN))),
    Case("no_srh", "an IPv6 packet in IPv6", to_sid(b"", next_header=p.IPV6)),
    Case("no_srh", "hop-by-hop options first", to_sid(bytes([43, 0, 1, 4, 0, 0, 0, 0]) + SRH, next_header=0)),
    Case("no_srh", "a fragment", to_sid(bytes([43, 0, 0, 0, 0, 0, 0, 1]) + SRH, next_header=p.FRAGMENT)),
    *(Case("bad_srh", name, to_sid(header)) for name, header in LYING.items()),
    Case("not_active", "points at the next one", to_sid(srh(MIDDLE.sids, 0))),
    Case("not_active", "points at the one before", to_sid(srh(MIDDLE.sids, 2))),
    Case("not_active", "another segment list", to_sid(srh(FIRST.sids, 2))),
    Case("unknown_sid", "of no chain", along((BEFORE, SID + 1, BEHIND), at=SID + 1)),
    Case("unknown_sid", "the host's own address", along((BEFORE, OWN_ADDRESS), at=OWN_ADDRESS)),
    Case("sl_zero", "the path ends at an NSF", along((BEFORE, SID))),
    Case("sl_left", "the path goes on behind the sink", along((*LAST.sids, R1), AT_LAST.ends, LAST.sids[-1])),
    Case("sl_left", "the path goes on behind the head-end", along((R1, DECAP, R2), mirrored(AT_MIDDLE.ends), DECAP)),
    Case("not_probe", "TCP where the host's own probes end", along((R1, PROBES), AT_MIDDLE.ends, PROBES)),
    *(Case("not_ipv6", f"next header {kind}", to_sid(srh(MIDDLE.sids, 1, next_header=kind))) for kind in (0, 4, 6, 17)),
    *(Case("not_ipv6", f"next header {kind}", to_sid(srh(MIDDLE.sids, 1, next_header=kind))) for kind in (44, 58, 59)),
    Case("not_ipv6", "an SRH behind the SRH", to_sid(srh(MIDDLE.sids, 1, next_header=ROUTING) + SRH)),
    *(Case("not_ipv6", f"inner version {kind}", holding(bytes([kind << 4]) + INNER[1:])) for kind in (0, 4, 5, 7, 15)),
    *(Case("fragment", f"inner next header {kind}", holding_next(kind)) for kind in (0, ROUTING, 44, p.OPTIONS)),
    *(Case("not_tcp", f"inner next header {kind}", holding_next(kind)) for kind in (1, 4, p.IPV6, 50, 59, 132)),
    Case("not_tcp", "UDP", holding(udp(AT_MIDDLE.ends))),
    Case("not_tcp", "ping", holding(icmpv6(CLIENT, MIDDLE.service, b"", p.ECHO_REQUEST))),
    Case("not_tcp", "pong", holding(icmpv6(CLIENT, MIDDLE.service, b"", 129))),
    Case("not_tcp", "an error about UDP", holding(icmpv6(CLIENT, MIDDLE.service, udp(mirrored(AT_MIDDLE.ends))))),
    Case("service", "of another chain", holding(tcp((CLIENT, 9, FIRST.service, PORT), SYN))),
    Case("service", "between two others", holding(tcp((CLIENT, 9, FOREIGN, PORT), SYN))),
    Case("service", "the alias of another host", holding(tcp((CLIENT, 9, TWICE.stops[2].service, PORT), SYN))),
    Case("service", "an error about others", holding(icmpv6(CLIENT, MIDDLE.service, tcp((CLIENT, 9, FOREIGN, 9))))),
    Case("service", "from the service, at the sink", AT_LAST.arriving(tcp(mirrored(AT_LAST.ends)))),
    Case("service", "at the head-end", encapsulated(BEHIND, (DECAP,), 0, tcp((FOREIGN, 9, CLIENT, 9)))),
    *(Case("wrong_path", name, along(travel)) for name, travel in WRONG.items()),
    Case("wrong_path", "past the first of two NSFs here", along(TWICE.sids[1:], ALIASED.ends, ALIASED.stop.sid)),
    Case("no_flow", "an answer", AT_MIDDLE.answering(tcp(mirrored(AT_MIDDLE.ends)))),
    Case("no_flow", "an error forward", holding(icmpv6(CLIENT, MIDDLE.service, ABOUT))),
    Case("no_flow", "an error backward", AT_MIDDLE.answering(icmpv6(MIDDLE.service, CLIENT, tcp(AT_MIDDLE.ends)))),
    Case("full", "no room for a path", AT_LAST.arriving(tcp(AT_LAST.ends, SYN)), prepare=fill_paths),
    *(Case("outer_error", f"type {kind}", frame(icmpv6(CLIENT, SID, ABOUT, kind))) for kind in (1, 2, 3, 4)),
    Case("outer_error", "at the head-end", frame(icmpv6(CLIENT, DECAP, ABOUT))),
]  # fmt: skip
"""What never gets further than the headers."""
OTHERS = [
    Case("no_listener", "a SYN", AT_MIDDLE.arriving(INNER)),
    Case("no_listener", "an ACK", AT_MIDDLE.arriving(tcp(AT_MIDDLE.ends, ACK))),
    Case("service", "between others", frame(tcp((CLIENT, 9, FOREIGN, 9))), "egress"),
    Case("truncated", "a TCP header of 13 bytes", frame(LEAVING[:53]), "egress"),
    Case("not_ipv6", "inner version 4", frame(b"\x45" + LEAVING[1:]), "egress"),
    Case("not_tcp", "UDP", frame(udp(AT_MIDDLE.local_ends)), "egress"),
    Case("not_tcp", "ping", frame(icmpv6(CLIENT, MIDDLE.service, b"", p.ECHO_REQUEST)), "egress"),
    Case("fragment", "a fragment", frame(ipv6(CLIENT, MIDDLE.service, p.FRAGMENT, bytes(30))), "egress"),
    Case("no_path", "forward", frame(LEAVING), "egress"),
    Case("no_path", "backward", frame(tcp(mirrored(AT_MIDDLE.local_ends))), "egress"),
    Case("no_path", "another port", frame(tcp((CLIENT, CLIENT_PORT, MIDDLE.service, 9))), "egress", know(AT_MIDDLE)),
    Case("no_path", "forward, at the sink", frame(tcp(AT_LAST.local_ends)), "egress", know(AT_LAST)),
    Case("no_path", "from the head-end, past its route", frame(tcp((CLIENT, 9, OWN.service, 9), SYN)), "egress"),
    Case("no_route", "the next segment is nowhere", frame(LEAVING), "egress", know(ASTRAY)),
    Case("too_big", "a byte more than fits", frame(LEAVING + bytes(FILLING + 1)), "egress", know(AT_MIDDLE)),
    Case("headroom", "segments of no TCP packet", frame(LEAVING + bytes(999)), "egress", know(AT_MIDDLE), gso_size=500),
    Case("headroom", "segments of no TCP packet", AT_LAST.arriving(tcp(AT_LAST.ends, SYN, bytes(999))), gso_size=500),
    Case("outside", "to a SID", frame(tcp((FOREIGN, 9, SID, 9))), "edge"),
    Case("outside", "from a SID", frame(tcp((SID, 9, FOREIGN, 9))), "edge"),
    Case("outside", "to a service", frame(udp((FOREIGN, 9, MIDDLE.service, 9))), "edge"),
    Case("outside", "to the host's address", frame(udp((FOREIGN, 9, OWN_ADDRESS, 9))), "edge"),
    Case("outside", "an SRH in transit", frame(ipv6(FOREIGN, FOREIGN, ROUTING, srh((FOREIGN,), 0) + INNER)), "edge"),
    Case("outside", "an SRH that lies", frame(ipv6(FOREIGN, FOREIGN, ROUTING, srh((), 9))), "edge"),
]


@pytest.mark.parametrize("case", INGRESS, ids=str)
def test_a_wrong_packet_is_dropped_as_it_came_and_teaches_nothing(datapath: Datapath, case: Case) -> None:
    case.prepare(datapath)
    before = datapath.table("paths").keys()
    assert datapath.put(case.frame) == (SHOT, case.frame, 0, case.reason)
    assert datapath.table("paths").keys() == before
    assert not datapath.table("embryos")
    assert not datapath.table("flows")


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_what_cannot_be_delivered_or_sent_is_dropped(datapath: Datapath, case: Case) -> None:
    case.prepare(datapath)
    outcome = datapath.put(case.frame, case.program, case.gso_size)
    assert (outcome.verdict, outcome.reason) == (SHOT, case.reason)


def test_every_reason_is_the_outcome_of_some_case() -> None:
    assert {case.reason for case in (*INGRESS, *OTHERS)} == set(layout.REASONS)


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(AT_MIDDLE.arriving(tcp(AT_MIDDLE.ends, SYN, b"some bytes")), id="SYN at an NSF"),
        pytest.param(AT_LAST.arriving(tcp(AT_LAST.ends, SYN)), id="SYN at the sink"),
        pytest.param(AT_MIDDLE.answering(tcp(mirrored(AT_MIDDLE.ends), ACK, b"some bytes")), id="answer at an NSF"),
        pytest.param(encapsulated(BEHIND, (DECAP,), 0, tcp((OWN.service, 9, CLIENT, 9))), id="answer at the head-end"),
        pytest.param(AT_MIDDLE.arriving(icmpv6(CLIENT, MIDDLE.service, ABOUT)), id="ICMPv6 error"),
    ],
)
def test_a_packet_cut_off_anywhere_is_dropped(datapath: Datapath, whole: bytes) -> None:
    know(AT_MIDDLE)(datapath)
    known = datapath.table("embryos").keys()
    for length in range(14, len(whole)):
        cut = whole[:length]
        try:
            outcome = datapath.put(cut)
        except NetworkError:
            assert length < 54, "only what has no IPv6 header cannot be put through a program"
        else:
            assert outcome == ((OK, cut, 0, None) if length < 54 else (SHOT, cut, 0, "truncated"))
    assert datapath.table("embryos").keys() == known
    assert datapath.put(whole).frame != whole
