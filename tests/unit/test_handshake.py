"""The opening of a chain: strangers are refused and counted, the right one gets in, WELCOME shows the whole path."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import pytest

from msl.errors import NetworkError, ProtocolError
from msl.net import handshake
from msl.net.connection import Connection
from msl.net.fabric import DirectFabric, Endpoint, endpoint_of
from msl.net.frame import MAX_DOCUMENT, DType, Header, Kind, TensorSpec, encode, encode_document
from msl.net.handshake import Doorkeeper, Hello, read_hello, say_hello
from msl.net.hop import HopPlan, open_relay, open_source

EXPECTED = Hello(job="6f" * 16, hop=1, schema="ab" * 32, in_flight=3)
MAX_BODY = 1 << 20


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


def hello_bytes(hello: Hello = EXPECTED, **changes: Any) -> bytes:
    return b"".join(encode_document(Header(Kind.HELLO), {**asdict(hello), **changes}))


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
        (b"MSLF\x02" + bytes(27), "the peer speaks protocol version 2, this side version 1"),
        (
            b"MSLF\x01\x01" + bytes(18) + struct.pack("<Q", 2**63),
            f"a document of {2**63} bytes; at most 65536 are allowed",
        ),
        (b"".join(encode_document(Header(Kind.PING))), "a connection begins with HELLO, not PING"),
        (b"".join(encode_document(Header(Kind.END))), "a connection begins with HELLO, not END"),
        (
            b"".join(encode(Header(Kind.FORWARD), [TensorSpec(DType.UINT8, (1,))], [memoryview(b"x")])),
            "a connection begins with HELLO, not FORWARD",
        ),
        (
            b"MSLF\x01\x01" + bytes(18) + struct.pack("<Q", 3) + b"{1}",
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


# Opening a chain.


NAMES = ("source", "nsf1", "sink")


def hop_plan(hop: int, connect_s: float = 5.0, **changes: Any) -> HopPlan:
    following = f"{NAMES[hop + 1]} on host n{hop + 1}" if hop + 1 < len(NAMES) else None
    hello = replace(EXPECTED, hop=hop, **changes)
    return HopPlan(hello, NAMES[hop], f"n{hop}", following, MAX_BODY, connect_s, silence_s=5.0)


class Hop:
    """A member that listens at loopback and is opened in a thread."""

    def __init__(self, plan: HopPlan, pool: ThreadPoolExecutor) -> None:
        listener = DirectFabric("127.0.0.1").listen()
        self.endpoint = endpoint_of(listener)
        self.plan = plan
        self.door = Doorkeeper(listener, plan.hello, f"hop {plan.hello.hop - 1}", MAX_BODY)
        self._pool = pool

    def open(self, next_hop: Endpoint | None) -> Future[tuple[Connection, Connection | None]]:
        return self._pool.submit(open_relay, DirectFabric("127.0.0.1", next_hop), self.plan, self.door)


@pytest.fixture
def make_hop() -> Iterator[Callable[[HopPlan], Hop]]:
    hops: list[Hop] = []
    with ThreadPoolExecutor() as pool:

        def make(plan: HopPlan) -> Hop:
            hops.append(Hop(plan, pool))
            return hops[-1]

        yield make
        for hop in hops:
            hop.door.close()


def close(*connections: Connection | None) -> None:
    for connection in connections:
        if connection is not None:
            connection.close()


def test_welcome_shows_the_whole_path_to_the_source(make_hop: Callable[[HopPlan], Hop]) -> None:
    nsf, sink = make_hop(hop_plan(1)), make_hop(hop_plan(2))
    at_sink, at_nsf = sink.open(None), nsf.open(sink.endpoint)
    connection, path = open_source(DirectFabric("127.0.0.1", nsf.endpoint), hop_plan(0))
    assert path == [{"hop": hop, "name": name, "host": f"n{hop}"} for hop, name in enumerate(NAMES)]
    (nsf_previous, nsf_next), (sink_previous, sink_next) = at_nsf.result(5), at_sink.result(5)
    assert sink_next is None
    assert nsf_next is not None
    assert (connection.peer, nsf_previous.peer) == ("nsf1 on host n1", "hop 0")
    assert (nsf_next.peer, sink_previous.peer) == ("sink on host n2", "hop 1")
    connection.send_document(Header(Kind.EPOCH))
    assert nsf_previous.receive().kind is Kind.EPOCH
    assert (nsf.door.refused, sink.door.refused) == (0, 0)
    close(connection, nsf_previous, nsf_next, sink_previous)


def test_nobody_is_welcomed_before_the_sink_has_answered(make_hop: Callable[[HopPlan], Hop]) -> None:
    nsf, sink = make_hop(hop_plan(1)), make_hop(hop_plan(2))
    at_nsf = nsf.open(sink.endpoint)
    with socket.create_connection(nsf.endpoint) as source:
        source.sendall(hello_bytes())
        source.settimeout(0.3)
        with pytest.raises(TimeoutError):
            source.recv(1)
        at_sink = sink.open(None)
        source.settimeout(5)
        assert source.recv(6)[5] == Kind.WELCOME
        close(*at_nsf.result(5), *at_sink.result(5))


def test_a_refusal_down_the_chain_is_told_to_the_source_with_its_reason(make_hop: Callable[[HopPlan], Hop]) -> None:
    nsf, sink = make_hop(hop_plan(1)), make_hop(hop_plan(2, schema="cd" * 32))
    at_nsf = nsf.open(sink.endpoint)
    reason = f"the HELLO is for schema '{'ab' * 32}', expected '{'cd' * 32}'"
    with pytest.raises(NetworkError) as caught:
        open_source(DirectFabric("127.0.0.1", nsf.endpoint), hop_plan(0))
    assert str(caught.value) == (
        f"nsf1 on host n1 refused the connection: sink on host n2 refused the connection: {reason}"
    )
    with pytest.raises(NetworkError, match="sink on host n2 refused"):
        at_nsf.result(5)
    assert sink.door.refused == 1


def test_a_next_hop_that_is_not_there_is_told_to_the_source(make_hop: Callable[[HopPlan], Hop]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        endpoint = endpoint_of(gone)
    nsf = make_hop(hop_plan(1))
    at_nsf = nsf.open(endpoint)
    with pytest.raises(NetworkError) as caught:
        open_source(DirectFabric("127.0.0.1", nsf.endpoint), hop_plan(0))
    assert str(caught.value) == (
        f"nsf1 on host n1 refused the connection: sink on host n2: cannot connect to {endpoint}: Connection refused"
    )
    with pytest.raises(NetworkError, match="cannot connect"):
        at_nsf.result(5)


def test_a_hop_whose_predecessor_is_gone_leaves_no_connection_open_onward(make_hop: Callable[[HopPlan], Hop]) -> None:
    nsf, sink = make_hop(hop_plan(1)), make_hop(hop_plan(2))
    at_nsf = nsf.open(sink.endpoint)
    with socket.create_connection(nsf.endpoint) as source:
        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        source.sendall(hello_bytes())
        deadline = time.monotonic() + 5
        while not sink.door._let_in.qsize() and time.monotonic() < deadline:
            time.sleep(0.005)
    time.sleep(0.05)  # closed with a reset, which is here by now: the WELCOME cannot be sent
    previous, _ = sink.open(None).result(5)
    with pytest.raises(NetworkError):
        at_nsf.result(5)
    frame = previous.receive()
    assert (frame.kind, frame.document["kind"]) == (Kind.ERROR, "NetworkError")
    with pytest.raises(NetworkError, match="closed the connection"):
        previous.receive()
    close(previous)


def test_the_previous_hop_has_until_the_deadline_to_come(make_hop: Callable[[HopPlan], Hop]) -> None:
    nsf = make_hop(hop_plan(1, connect_s=0.2))
    with pytest.raises(NetworkError, match=r"^hop 0 did not connect within 0\.2 s \(0 other connections refused\)$"):
        nsf.open(None).result(5)


@contextlib.contextmanager
def answering(behave: Callable[[socket.socket], None]) -> Iterator[Endpoint]:
    """A next hop that does as it likes with the connection that it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                behave(sock)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield endpoint_of(listener)
        thread.join(timeout=5)
        assert not thread.is_alive()


def hold(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


def ping_for_ever(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"".join(encode_document(Header(Kind.PING))))
        time.sleep(0.02)


def test_a_next_hop_that_does_not_answer_ends_the_opening_at_the_deadline() -> None:
    with answering(hold) as endpoint:
        start = time.monotonic()
        with pytest.raises(NetworkError, match=r"^nothing received from nsf1 on host n1 for 0\.\d+ s$"):
            open_source(DirectFabric("127.0.0.1", endpoint), hop_plan(0, connect_s=0.3))
        assert time.monotonic() - start < 2


def test_a_next_hop_that_only_pings_ends_the_opening_at_the_deadline() -> None:
    with answering(ping_for_ever) as endpoint:
        start = time.monotonic()
        with pytest.raises(
            NetworkError, match=r"^no WELCOME from nsf1 on host n1 within 0\.\d+ s, though it sends pings$"
        ):
            open_source(DirectFabric("127.0.0.1", endpoint), hop_plan(0, connect_s=0.3))
        assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("reply", "wording"),
    [
        (encode_document(Header(Kind.END)), "nsf1 on host n1 answered a HELLO with END"),
        (encode_document(Header(Kind.WELCOME)), "nsf1 on host n1 answered a HELLO with WELCOME"),
        (encode_document(Header(Kind.WELCOME), {"path": "sink"}), "nsf1 on host n1 answered a HELLO with WELCOME"),
        (encode_document(Header(Kind.ERROR)), "nsf1 on host n1 refused the connection: None"),
        (
            encode_document(Header(Kind.ERROR), {"message": "two\nlines"}),
            "nsf1 on host n1 refused the connection: two lines",
        ),
        ([b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"], "not an msl peer: a frame starts with b'MSLF',"),
    ],
)
def test_an_answer_that_is_no_welcome_is_told(reply: list[bytes], wording: str) -> None:
    def answer(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"".join(reply))
        hold(sock)

    with answering(answer) as endpoint, pytest.raises(NetworkError) as caught:
        open_source(DirectFabric("127.0.0.1", endpoint), hop_plan(0))
    assert str(caught.value).startswith(wording)


def test_pings_before_welcome_are_skipped() -> None:
    def answer(sock: socket.socket) -> None:
        ping = b"".join(encode_document(Header(Kind.PING)))
        sock.sendall(ping * 3 + b"".join(encode_document(Header(Kind.WELCOME), {"path": [{"hop": 1}]})))
        hold(sock)

    with answering(answer) as endpoint:
        connection = Connection(socket.create_connection(endpoint), "nsf1", MAX_BODY, 5.0)
        assert say_hello(connection, EXPECTED, 5.0) == [{"hop": 1}]
        connection.close()
