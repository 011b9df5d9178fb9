"""Packets with random faults: the proxy always gives one of its verdicts, counts each drop, and keeps what it knows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.net.datapath import CLIENT, HEAD_END, HERE, MIDDLE, OK, OWN, REDIRECT, SHOT, TWICE, Datapath, ends_of
from tests.net.datapath import DOMAIN as SR_DOMAIN
from tests.net.packets import (
    ACK,
    ETH_LEN,
    FIN,
    ICMPV6,
    SYN,
    TCP,
    Ends,
    Ip,
    Srv6,
    encapsulated,
    frame,
    icmpv6,
    mirrored,
    tcp,
)
from tests.net.passages import ALIASED, AT_FIRST, AT_LAST, AT_MIDDLE, NSFS, SINKS

pytestmark = pytest.mark.root

ROUNDS = 20_000
SEED = 0x6D736C
DECAP = SR_DOMAIN.host(HERE).decap
INCOMING = [
    *(place.arriving(tcp(place.ends, SYN), tag=number) for number, place in enumerate((*NSFS, *SINKS))),
    *(place.arriving(tcp(place.ends, ACK | FIN, b"some bytes")) for place in (AT_FIRST, AT_MIDDLE, ALIASED, AT_LAST)),
    *(place.answering(tcp(mirrored(place.ends), ACK, b"some bytes")) for place in (AT_FIRST, AT_MIDDLE, ALIASED)),
    AT_LAST.arriving(icmpv6(CLIENT, AT_LAST.ends[2], tcp(mirrored(AT_LAST.ends)))),
    ALIASED.answering(icmpv6(TWICE.service, CLIENT, tcp(ALIASED.ends))),
    encapsulated(OWN.sids[0], (DECAP,), 0, tcp((OWN.service, 80, SR_DOMAIN.host(HERE).address, 90))),
    encapsulated(HEAD_END, MIDDLE.sids, 2, tcp(AT_MIDDLE.ends)),
    frame(tcp((CLIENT, 9, SR_DOMAIN.host(HERE).address, 9))),
    frame(icmpv6(CLIENT, MIDDLE.sids[1], tcp(AT_MIDDLE.ends))),
]
LEAVING = [
    *(frame(tcp(place.local_ends, ACK, b"some bytes")) for place in (AT_FIRST, AT_MIDDLE, ALIASED)),
    *(frame(tcp(mirrored(place.local_ends), ACK)) for place in (AT_FIRST, AT_MIDDLE, ALIASED, AT_LAST)),
    frame(icmpv6(CLIENT, ALIASED.stop.service, tcp(mirrored(ALIASED.local_ends)))),
    frame(icmpv6(ALIASED.stop.service, CLIENT, tcp(ALIASED.local_ends))),
]


def spoil(rng: random.Random, packet: bytes) -> bytes:
    """One to four faults."""
    spoilt = bytearray(packet)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(12, len(spoilt))
        match rng.randrange(7):
            case 0 | 1:
                spoilt[at] ^= 1 << rng.randrange(8)
            case 2:
                spoilt[at] = rng.choice((0, 1, 4, 6, 41, 43, 44, 58, 60, 127, 128, 255))
            case 3:
                spoilt[54:58] = rng.randbytes(4)  # the SRH's next header, length, type and segments left
            case 4:
                del spoilt[max(at, 60) :]
            case 5:
                spoilt[at:at] = rng.randbytes(rng.choice((1, 8, 16)))
            case 6:
                other = rng.randrange(12, len(spoilt))
                spoilt[at : at + 16] = spoilt[other : other + 16]
    return bytes(spoilt + bytes(max(0, 54 - len(spoilt))))


def put_all(datapath: Datapath, program: str, packets: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Verdicts and packets."""
    return datapath.do(lambda: [datapath.run(program, packet)[:2] for packet in packets])


@pytest.mark.parametrize(("program", "valid"), [("ingress", INCOMING), ("egress", LEAVING), ("edge", INCOMING)])
def test_spoilt_packets_are_judged_and_counted(datapath: Datapath, program: str, valid: list[bytes]) -> None:
    watched: Ends = ends_of(MIDDLE, port=7)
    with datapath.established(watched):
        datapath.put(AT_MIDDLE.arriving(tcp(watched)))
    before = bytes(datapath.flow(watched) or b""), bytes(datapath.path(datapath.flow(watched)))
    put_all(datapath, "ingress", INCOMING)
    dropped = sum(datapath.proxy.drops().values())

    rng = random.Random(SEED)
    packets = [spoil(rng, rng.choice(valid)) for _ in range(ROUNDS)]
    judged = put_all(datapath, program, packets)

    verdicts = Counter(verdict for verdict, _ in judged)
    assert set(verdicts) <= {OK, SHOT, REDIRECT}
    assert sum(datapath.proxy.drops().values()) - dropped == verdicts[SHOT]
    assert (bytes(datapath.flow(watched) or b""), bytes(datapath.path(datapath.flow(watched)))) == before
    assert verdicts[REDIRECT if program == "egress" else OK] > ROUNDS / 100
    for packet, (verdict, left) in zip(packets, judged, strict=True):
        if verdict != SHOT:
            assert is_sound(packet, left) if left != packet else verdict == OK


def is_sound(packet: bytes, left: bytes) -> bool:
    """Whether a packet that was changed and goes on is whole: encapsulated, or decapsulated."""
    if len(left) > len(packet):
        return len(Srv6.parse(left).inner) == len(packet) - ETH_LEN
    inner = Ip.parse(bytes([left[ETH_LEN] & 0xF0]) + bytes(3) + left[ETH_LEN + 4 :])
    return inner.length <= len(inner.payload) and inner.next_header in (TCP, ICMPV6)
