"""The door of a stage: strangers are refused and counted, and do not keep the right one out."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from msl.errors import NetworkError, ProtocolError
from msl.net import handshake
from msl.net.fabric import DirectFabric
from msl.net.frame import MAX_DOCUMENT, DType, Header, Kind, TensorSpec, encode, encode_document
from msl.net.handshake import Doorkeeper, read_hello
from tests.unit.hellos import EXPECTED, MAX_BODY, hello_bytes


class Door:
    """A doorkeeper on loopback, and ways to knock."""

    def __init__(self) -> None:
        listener = DirectFabric("127.0.0.1").listen()
        self.address = listener.getsockname()
        self.keeper = Doorkeeper(listener, EXPECTED, "source on host n0", MAX_BODY)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=5)

    def send(self, raw: bytes) -> bytes:
        """Send bytes from a new connection; returns all that comes back until it is closed."""
        with self.connect() as sock:
            sock.sendall(raw)
            return read_to_end(sock)

    def ask(self, raw: bytes) -> str:
        """The reason that bytes are refused with."""
        reply = self.send(raw)
        assert reply[5] == Kind.ERROR
        document = json.loads(reply[32:])
        assert document["kind"] == "ProtocolError"
        return str(document["message"])

    def wait_refused(self, count: int) -> None:
        deadline = time.monotonic() + 5
        while self.keeper.refused < count and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.keeper.refused == count


def read_to_end(sock: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            received += piece
    return received


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.keeper.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_HELLO_S", 0.5)


def assert_still_open(door: Door) -> None:
    """The one that is expected still gets in, and frames larger than a document arrive from it."""
    spec, payload = TensorSpec(DType.UINT8, (2 * MAX_DOCUMENT,)), memoryview(bytes(2 * MAX_DOCUMENT))
    with door.connect() as sock:
        sock.sendall(hello_bytes())
        connection, _ = door.keeper.admit(5.0)
        sock.sendall(b"".join(encode(Header(Kind.FORWARD), [spec], [payload])))
        frame = connection.receive()
        assert (frame.kind, frame.payloads[0]) == (Kind.FORWARD, payload)
        assert connection.peer == "source on host n0"
        connection.close()


@pytest.mark.parametrize(
    ("raw", "wording"),
    [
        (
            b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "not an msl peer: a frame starts with b'MSLF', this one with b'GET '",
        ),
        (b"MSLF\x01" + bytes(27), "the peer speaks protocol version 1, this side version 2"),
        (
            b"MSLF\x02\x01" + bytes(18) + struct.pack("<Q", 2**63),
            f"a document of {2**63} bytes; at most 65536 are allowed",
        ),
        (b"".join(encode_document(Header(Kind.PING))), "a connection begins with HELLO, not PING"),
        (b"".join(encode_document(Header(Kind.END))), "a connection begins with HELLO, not END"),
        (
            b"".join(encode(Header(Kind.FORWARD), [TensorSpec(DType.UINT8, (1,))], [memoryview(b"x")])),
            "a connection begins with HELLO, not FORWARD",
        ),
        (
            b"MSLF\x02\x01" + bytes(18) + struct.pack("<Q", 3) + b"{1}",
            "a control frame's body is not JSON in UTF-8",
        ),
        (
            b"".join(encode_document(Header(Kind.HELLO))),
            "a HELLO has the fields job, hop, schema, in_flight, not none",
        ),
        (
            hello_bytes(extra=1),
            "a HELLO has the fields job, hop, schema, in_flight, not 'job', 'hop', 'schema', 'in_flight', 'extra'",
        ),
        (hello_bytes(hop="1"), "HELLO: hop is not of type int"),
        (hello_bytes(hop=True), "HELLO: hop is not of type int"),
        (hello_bytes(hop=1.0), "HELLO: hop is not of type int"),
        (hello_bytes(job=None), "HELLO: job is not of type str"),
        (hello_bytes(job="00" * 16), "the HELLO is for another job"),
        (hello_bytes(hop=2), "the HELLO is for hop 2, expected 1"),
        (hello_bytes(schema="cd" * 32), f"the HELLO is for schema '{'cd' * 32}', expected '{'ab' * 32}'"),
        (hello_bytes(in_flight=4), "the HELLO is for in_flight 4, expected 3"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_a_stranger_is_told_why_counted_and_does_not_keep_the_right_one_out(
    door: Door, raw: bytes, wording: str
) -> None:
    assert door.ask(raw) == wording
    assert door.keeper.refused == 1
    assert_still_open(door)
    assert door.keeper.refused == 1


def test_the_job_of_the_chain_is_not_told_to_strangers(door: Door) -> None:
    assert EXPECTED.job not in door.ask(hello_bytes(job="00" * 16))


def test_a_stranger_cannot_fill_the_log(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        door.ask(hello_bytes(schema="x" * 60_000))
        door.ask(hello_bytes(**{"forged\nline": 1, "y" * 50_000: 2}))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all(len(message) < 500 and "\n" not in message for message in messages)


def test_a_stranger_is_given_no_memory_for_tensors(door: Door) -> None:
    """The limit of a frame holds for members; before HELLO no more than a document is read."""
    size = MAX_BODY // 2
    frame = encode(Header(Kind.FORWARD), [TensorSpec(DType.UINT8, (size,))], [memoryview(bytes(size))])
    assert "this hop accepts at most 65536" in door.ask(bytes(frame[0]))


def test_a_second_good_hello_is_refused(door: Door) -> None:
    with door.connect() as first:
        first.sendall(hello_bytes())
        connection, _ = door.keeper.admit(5.0)
        assert door.ask(hello_bytes()) == "this stage already has its connection"
        assert door.keeper.refused == 1
        connection.send_document(Header(Kind.WELCOME), {"path": []})  # the first one is none the worse
        assert first.recv(6)[5] == Kind.WELCOME
        connection.close()


@pytest.mark.usefixtures("hasty")
def test_a_silent_peer_is_closed_after_its_time() -> None:
    door = Door()
    with door.connect() as silent:
        start = time.monotonic()
        assert read_to_end(silent) == b""
        assert 0.4 < time.monotonic() - start < 4
    door.wait_refused(1)
    assert_still_open(door)
    door.keeper.close()


@pytest.mark.usefixtures("hasty")
def test_a_dripping_peer_has_no_more_time_than_a_silent_one() -> None:
    door = Door()
    start = time.monotonic()
    with door.connect() as sock, contextlib.suppress(OSError):
        for byte in hello_bytes():
            sock.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - start < 3  # the whole HELLO would have taken four seconds
    door.wait_refused(1)
    assert_still_open(door)
    door.keeper.close()


@pytest.mark.usefixtures("hasty")
def test_the_time_for_hello_does_not_end_a_connection_that_is_let_in() -> None:
    door = Door()
    with door.connect() as sock:
        sock.sendall(hello_bytes())
        connection, _ = door.keeper.admit(5.0)
        connection.set_silence(5.0)
        time.sleep(0.7)
        sock.sendall(b"".join(encode_document(Header(Kind.PING))))
        assert connection.receive().kind is Kind.PING
        connection.close()
    door.keeper.close()


def test_a_hundred_connections_opened_and_dropped_are_counted(door: Door) -> None:
    for count in range(20, 101, 20):  # no more at once than the listener's backlog
        for _ in range(20):
            door.connect().close()
        door.wait_refused(count)
    assert_still_open(door)


def test_a_crowd_that_says_nothing_does_not_keep_the_right_one_out(door: Door) -> None:
    with contextlib.ExitStack() as stack:
        crowd = []
        for _ in range(80):
            crowd.append(stack.enter_context(door.connect()))
            time.sleep(0.002)  # no more at once than the listener's backlog
        assert_still_open(door)
        assert read_to_end(crowd[0]) == b""  # who was silent longest had to go
        assert 80 - handshake._MAX_PENDING <= door.keeper.refused < 80
        threads = [thread for thread in threading.enumerate() if thread.name == "msl-hello"]
        assert len(threads) <= handshake._MAX_PENDING + 1


def test_closing_the_door_turns_away_who_waits_and_ends_all_threads() -> None:
    before = set(threading.enumerate())
    door = Door()
    with door.connect() as silent, door.connect() as good:
        good.sendall(hello_bytes())
        time.sleep(0.1)
        start = time.monotonic()
        door.keeper.close()
        assert read_to_end(silent) == b""
        assert read_to_end(good) == b""  # let in, but nobody asked for it
        assert time.monotonic() - start < 2
    with pytest.raises(ConnectionRefusedError):
        door.connect()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=2)
        assert not thread.is_alive(), thread


def test_who_does_not_come_is_named_with_the_number_of_those_who_did(door: Door) -> None:
    door.ask(hello_bytes(hop=3))
    with pytest.raises(NetworkError) as caught:
        door.keeper.admit(0.1)
    assert str(caught.value) == "source on host n0 did not connect within 0.1 s (1 other connections refused)"


@pytest.mark.parametrize("value", [{}, {**asdict(EXPECTED), "x": 1}, {**asdict(EXPECTED), "schema": 3}])
def test_a_hello_is_read_only_if_all_of_it_is_right(value: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_hello(value)
    assert read_hello(asdict(EXPECTED)) == EXPECTED
