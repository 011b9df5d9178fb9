"""The proxy on a wire: what it hands to the listener of an NSF, which a test run of the program cannot do."""

from __future__ import annotations

import dataclasses
import itertools
import socket
import struct
from collections.abc import Iterator

import pytest

from msl.net.sfc.fabric import transparent_listener, transparent_to
from tests.net.datapath import CLIENT_PORT, OK, Datapath
from tests.net.packets import ACK, ETH_LEN, FIN, PSH, RST, SYN, Srv6, mirrored, tcp
from tests.net.passages import ALIASED, AT_FIRST, AT_MIDDLE, NSFS, Passage

pytestmark = pytest.mark.root

PLACES = pytest.mark.parametrize("passage", [AT_FIRST, AT_MIDDLE, ALIASED], ids=str)
BEGIN = 1_000_000
"""The client's first sequence number."""
_ports = itertools.count(CLIENT_PORT + 1)
_AT_ONCE = struct.pack("ii", 1, 0)


@pytest.fixture
def place(datapath: Datapath, passage: Passage) -> Passage:
    """With a port that no connection has had, and nothing under way on the wire."""
    while datapath.received(timeout_s=0.02):
        pass
    return dataclasses.replace(passage, port=next(_ports))


@pytest.fixture
def nsf(datapath: Datapath, place: Passage) -> Iterator[socket.socket]:
    """The listener of the place that the test is about."""
    with datapath.do(lambda: transparent_listener(str(place.stop.sid))) as listener:
        listener.settimeout(2)
        yield listener


def send(
    datapath: Datapath, place: Passage, flags: int, sequence: int, acknowledged: int, payload: bytes = b""
) -> None:
    datapath.wire.send(place.arriving(tcp(place.ends, flags, payload, BEGIN + sequence, acknowledged), tag=3))


def answer(datapath: Datapath) -> bytes:
    """What the host says, with its headers, but without Ethernet header and flow label."""
    received = datapath.received()
    assert received is not None, {reason: count for reason, count in datapath.proxy.drops().items() if count}
    return received[ETH_LEN : ETH_LEN + 1] + bytes(3) + received[ETH_LEN + 4 :]


def inner_of(packet: bytes) -> bytes:
    return Srv6.parse(bytes(12) + b"\x86\xdd" + packet).inner


def flags_of(inner: bytes) -> int:
    return inner[53]


def sequence_of(inner: bytes) -> int:
    number: int = struct.unpack_from("!I", inner, 44)[0]
    return number


@pytest.fixture
def accepted(datapath: Datapath, place: Passage, nsf: socket.socket) -> Iterator[socket.socket]:
    """A connection that the NSF has taken; the client has sent ten bytes."""
    send(datapath, place, SYN, 0, 0)
    send(datapath, place, ACK | PSH, 1, sequence_of(inner_of(answer(datapath))) + 1, b"some bytes")
    sock, _ = nsf.accept()
    with sock:
        sock.settimeout(2)
        yield sock
        if sock.fileno() != -1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)


@pytest.mark.parametrize("passage", NSFS, ids=str)
def test_a_syn_gets_to_the_listener_whose_answer_goes_back(
    datapath: Datapath, place: Passage, nsf: socket.socket
) -> None:
    send(datapath, place, SYN, 0, 0)
    said = answer(datapath)
    inner = inner_of(said)
    assert said == place.back(inner, tag=3)[ETH_LEN:]
    assert inner[8:40] == place.ends[2].packed + place.ends[0].packed
    assert struct.unpack_from("!HH", inner, 40) == (place.ends[3], place.ends[1])
    assert flags_of(inner) == SYN | ACK
    assert not any(datapath.proxy.drops().values())


@PLACES
def test_without_a_listener_a_syn_is_dropped_and_nothing_said(datapath: Datapath, place: Passage) -> None:
    send(datapath, place, SYN, 0, 0)
    assert datapath.received(timeout_s=0.1) is None
    assert {reason: count for reason, count in datapath.proxy.drops().items() if count} == {"no_listener": 1}


@PLACES
def test_a_syn_that_comes_again_gets_the_same_answer_again(
    datapath: Datapath, place: Passage, nsf: socket.socket
) -> None:
    said = []
    for _ in range(2):
        send(datapath, place, SYN, 0, 0)
        said.append(inner_of(answer(datapath)))
    assert [flags_of(inner) for inner in said] == [SYN | ACK] * 2
    assert sequence_of(said[0]) == sequence_of(said[1])


@PLACES
def test_a_half_open_connection_is_no_flow_yet(datapath: Datapath, place: Passage, nsf: socket.socket) -> None:
    send(datapath, place, SYN, 0, 0)
    answer(datapath)
    assert datapath.put(place.arriving(tcp(place.ends, ACK))).verdict == OK
    assert datapath.flow(place.local_ends, "embryos")
    assert not datapath.table("flows")


@PLACES
def test_the_nsf_takes_the_connection_with_the_addresses_of_its_ends(
    datapath: Datapath, place: Passage, accepted: socket.socket
) -> None:
    assert accepted.recv(99) == b"some bytes"
    assert accepted.getpeername()[:2] == (str(place.ends[0]), place.ends[1])
    assert accepted.getsockname()[:2] == (str(place.stop.service), place.ends[3])
    datapath.put(place.arriving(tcp(place.ends, ACK), tag=3))
    assert datapath.flow(place.local_ends)
    assert not datapath.table("embryos")


def begin_anew(datapath: Datapath, place: Passage) -> int:
    """A client uses its ports again, resets what it does not know (RFC 9293 section 3.10.7.3), and tries once more.

    Returns the flags of the answer.
    """
    send(datapath, place, SYN, 77_777, 0)
    said = inner_of(answer(datapath))
    if flags_of(said) == ACK:
        (expected,) = struct.unpack_from("!I", said, 48)
        send(datapath, place, RST, expected - BEGIN, 0)
        send(datapath, place, SYN, 77_777, 0)
        said = inner_of(answer(datapath))
    return flags_of(said)


@PLACES
def test_a_client_that_lost_its_connection_gets_a_new_one(
    datapath: Datapath, place: Passage, accepted: socket.socket
) -> None:
    assert accepted.recv(99) == b"some bytes"
    answer(datapath)
    assert begin_anew(datapath, place) == SYN | ACK
    with pytest.raises(ConnectionResetError):
        accepted.recv(99)


@PLACES
def test_ports_of_a_connection_that_the_nsf_closed_can_be_used_again(
    datapath: Datapath, place: Passage, accepted: socket.socket
) -> None:
    answer(datapath)
    accepted.recv(99)
    accepted.close()
    end = inner_of(answer(datapath))
    assert flags_of(end) & FIN
    send(datapath, place, FIN | ACK, 11, sequence_of(end) + 1)
    answer(datapath)  # the socket is in TIME_WAIT
    assert begin_anew(datapath, place) == SYN | ACK


@PLACES
def test_the_nsfs_own_connection_goes_on_to_the_next_stop(
    datapath: Datapath, place: Passage, accepted: socket.socket
) -> None:
    def connect() -> socket.socket:
        sock = transparent_to(accepted)
        sock.setblocking(False)
        sock.connect_ex(accepted.getsockname()[:2])
        return sock

    answer(datapath)
    with datapath.do(connect):
        said = answer(datapath)
        inner = inner_of(said)
        assert said == place.onward(inner, tag=3)[ETH_LEN:]
        assert inner[8:40] == place.ends[0].packed + place.ends[2].packed
        assert struct.unpack_from("!HH", inner, 40) == (place.ends[1], place.ends[3])
        assert flags_of(inner) == SYN
        assert datapath.put(place.answering(tcp(mirrored(place.ends), RST | ACK))).verdict == OK
