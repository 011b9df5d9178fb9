"""What was overtaken at a change of path is delivered without its timestamps, so that TCP does not take it for old."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

import pytest

from msl.net.sfc import path
from tests.net.datapath import DOMAIN, HERE, OK, OWN, Datapath, ends_of
from tests.net.packets import ACK, IP_LEN, SYN, Ends, Ip, encapsulated, ipv6, mirrored, tcp
from tests.net.passages import AT_MIDDLE, R1

pytestmark = pytest.mark.root

TIMESTAMPS = bytes.fromhex("0101080a") + struct.pack("!II", 123_456, 654_321)
NOPS = b"\x01" * 12
SACK = bytes.fromhex("0101050a") + struct.pack("!II", 9000, 10_000)


def with_options(ends: Ends, options: bytes, payload: bytes = b"late", flags: int = ACK) -> bytes:
    """A TCP segment with options, and a checksum that is right."""
    plain = tcp(ends, flags, payload)
    source, _, destination, _ = ends
    segment = bytearray(plain[IP_LEN : IP_LEN + 20] + options + plain[IP_LEN + 20 :])
    segment[12] = (20 + len(options)) // 4 << 4
    segment[16:18] = bytes(2)
    pseudo = source.packed + destination.packed + struct.pack("!II", len(segment), 6)
    octets = pseudo + bytes(segment) + bytes(len(segment) % 2)
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    segment[16:18] = struct.pack("!H", ~total & 0xFFFF)
    return ipv6(source, destination, 6, bytes(segment))


def options_of(packet: bytes, length: int) -> bytes:
    return packet[IP_LEN + 20 : IP_LEN + 20 + length]


@pytest.fixture
def connected(datapath: Datapath) -> Iterator[Datapath]:
    """With an established connection whose path has the generation 100."""
    with datapath.established(AT_MIDDLE.local_ends):
        assert datapath.put(AT_MIDDLE.arriving(tcp(AT_MIDDLE.ends), tag=100)).verdict == OK
        yield datapath


@pytest.mark.parametrize(("tag", "hidden"), [(99, True), (1, True), (100, False), (101, False), (65_000, False)])
@pytest.mark.parametrize("more", [b"", SACK], ids=["timestamps", "timestamps and SACK"])
def test_forward_packets_of_an_older_generation_lose_their_timestamps(
    connected: Datapath, tag: int, hidden: bool, more: bytes
) -> None:
    inner = with_options(AT_MIDDLE.ends, TIMESTAMPS + more)
    outcome = connected.put(AT_MIDDLE.arriving(inner, tag=tag))
    assert outcome.verdict == OK
    assert options_of(outcome.packet, 12) == (NOPS if hidden else TIMESTAMPS)
    assert options_of(outcome.packet, 12 + len(more))[12:] == more
    assert outcome.packet.endswith(b"late")
    assert Ip.parse(outcome.packet).checksum_is_right


@pytest.mark.parametrize(("tag", "hidden"), [(99, True), (100, False), (101, False)])
def test_backward_packets_of_an_older_generation_lose_their_timestamps(
    connected: Datapath, tag: int, hidden: bool
) -> None:
    inner = with_options(mirrored(AT_MIDDLE.ends), TIMESTAMPS)
    answer = AT_MIDDLE.answering(inner)
    sender = AT_MIDDLE.chain.stops[AT_MIDDLE.chain.stops.index(AT_MIDDLE.stop) + 1]
    way_back = (*reversed(AT_MIDDLE.travel[: AT_MIDDLE.travel.index(sender.sid)]), DOMAIN.host("n0").decap)
    tagged = encapsulated(sender.sid, way_back, len(AT_MIDDLE.passed) + 1, inner, tag=tag)
    assert len(tagged) == len(answer)
    outcome = connected.put(tagged)
    assert outcome.verdict == OK
    assert options_of(outcome.packet, 12) == (NOPS if hidden else TIMESTAMPS)
    assert Ip.parse(outcome.packet).checksum_is_right


@pytest.mark.parametrize(("tag", "hidden"), [(0, True), (1, False), (2, False)])
def test_answers_of_an_older_generation_lose_their_timestamps_at_the_head_end(
    datapath: Datapath, tag: int, hidden: bool
) -> None:
    before = datapath.do(lambda: path.head_end(datapath.agent, OWN.number))
    datapath.do(lambda: datapath.agent.set_path(OWN.service, OWN.segments, 1))
    try:
        me = DOMAIN.host(HERE)
        ends = ends_of(OWN)
        ends = (me.address, ends[1], ends[2], ends[3])
        inner = with_options(mirrored(ends), TIMESTAMPS)
        outcome = datapath.put(encapsulated(OWN.sids[0], (R1, me.decap), 0, inner, tag=tag))
        assert outcome.verdict == OK
        assert options_of(outcome.packet, 12) == (NOPS if hidden else TIMESTAMPS)
        assert Ip.parse(outcome.packet).checksum_is_right
    finally:
        datapath.do(lambda: datapath.agent.set_path(OWN.service, before.segments, before.generation))


@pytest.mark.parametrize(
    ("options", "flags"),
    [(b"", ACK), (SACK, ACK), (bytes.fromhex("02040218") + TIMESTAMPS, ACK), (TIMESTAMPS, ACK | SYN)],
    ids=["none", "no timestamps", "not the first", "in a SYN"],
)
def test_other_options_and_those_of_a_handshake_stay(connected: Datapath, options: bytes, flags: int) -> None:
    inner = with_options(AT_MIDDLE.ends, options, flags=flags)
    outcome = connected.put(AT_MIDDLE.arriving(inner, tag=99))
    assert options_of(outcome.packet, len(options)) == options
    assert Ip.parse(outcome.packet).checksum_is_right


def test_what_was_overtaken_keeps_its_path_from_teaching(connected: Datapath) -> None:
    passage = dataclasses.replace(AT_MIDDLE, before=((R1,), (), ()))
    connected.put(passage.arriving(with_options(AT_MIDDLE.ends, TIMESTAMPS), tag=99))
    flow = connected.flow(AT_MIDDLE.local_ends)
    assert flow is not None
    assert flow.generation == 100
    assert connected.path(flow).arrival.travel == AT_MIDDLE.travel
