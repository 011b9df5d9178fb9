"""The opening of a chain: WELCOME shows the whole path, and what stops it is told to the source."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from msl.errors import NetworkError
from msl.net.connection import Connection
from msl.net.fabric import DirectFabric, Endpoint, endpoint_of
from msl.net.frame import Header, Kind, encode_document
from msl.net.handshake import Doorkeeper, say_hello
from msl.net.hop import HopPlan, open_relay, open_source
from tests.unit.hellos import EXPECTED, MAX_BODY, hello_bytes

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
