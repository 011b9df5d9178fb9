"""Whatever a peer does to a service ends its own session alone, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from msl.net.connection import Connection
from msl.net.frame import (
    MAGIC,
    VERSION,
    DType,
    Flag,
    Header,
    Kind,
    Role,
    TensorFlag,
    TensorSpec,
)
from msl.pipeline.serving import deadlines
from msl.pipeline.wire import tensors_in
from msl.plan import InputSpec
from tests.unit.services import Address, ask, serve, until
from tests.unit.strangers import (
    ROW,
    WIDE,
    Says,
    Wide,
    check,
    client,
    described,
    document,
    error_of,
    is_empty,
    refused,
    stages,
    stranger,
    tensors,
    undisturbed,
)

BAD_REQUESTS = {
    "shape": (tensors(torch.zeros(1, 9)), r"input 0 has the shape \(1, 9\); it must be \(n, 8\)"),
    "dimensions": (tensors(torch.zeros(8)), r"input 0 has the shape \(8,\)"),
    "no dimensions": (tensors(torch.zeros(())), r"input 0 has the shape \(\)"),
    "dtype": (tensors(ROW.double()), r"input 0 is of float64; it must be of float32"),
    "number of tensors": (tensors(ROW, ROW), r"a request of 2 tensors; the model has 1 inputs"),
    "no samples": (tensors(ROW[:0]), r"a request of 0 samples"),
    "too many samples": (tensors(torch.zeros(1025, 8)), r"a request of 1025 samples; 1 to 1024"),
    "target": (described(TensorSpec(DType.FLOAT32, (1, 8), Role.TARGET)), r"role SMASHED"),
    "absent": (described(TensorSpec(DType.FLOAT32, (1, 8), flags=TensorFlag.ABSENT)), r"none absent"),
    "version": (struct.pack("<4sB27x", MAGIC, VERSION + 7), r"speaks protocol version"),
    "garbage": (b"GET / HTTP/1.1\r\nHost: msl\r\n\r\n" * 9, r"not an msl peer"),
    "long document": (
        struct.pack("<4sBB18xQ", MAGIC, VERSION, Kind.HELLO, 2**40),
        r"a document of 1099511627776 bytes",
    ),
    "large frame": (struct.pack("<4sBB14xHHQ", MAGIC, VERSION, Kind.FORWARD, 1, 0, 2**40), r"max_frame_mb"),
    "training": (tensors(ROW, flags=Flag.TRAIN), r"FORWARD frame to train"),
    "result": (tensors(ROW, kind=Kind.RESULT), r"a RESULT frame; a client sends FORWARD"),
    "second hello": (document(Kind.HELLO, {"service": "toy"}), r"a HELLO frame; a client sends FORWARD"),
    "end": (document(Kind.END), r"a END frame"),
    "error": (document(Kind.ERROR, {"message": "no"}), r"a ERROR frame"),
}


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_a_bad_request_is_answered_with_its_reason(what: str, hops: int) -> None:
    raw, reason = BAD_REQUESTS[what]
    with undisturbed(stages(hops)) as (address, services):
        connection = client(address)
        check(connection)
        connection._sock.sendall(raw)
        assert re.search(reason, error_of(connection))
        assert refused(services) == {"ProtocolError": 1}


BAD_HELLOS = {
    "name": (document(Kind.HELLO, {"service": "other"}), "the HELLO is for service 'other', not 'toy'"),
    "type": (document(Kind.HELLO, {"service": 7}), "the HELLO is for service 7"),
    "extra field": (document(Kind.HELLO, {"service": "toy", "hop": 1}), "has the fields service, not 'service', 'hop'"),
    "nothing": (document(Kind.HELLO), "not none"),
    "request": (tensors(ROW), "begins with HELLO, not FORWARD"),
    "large request": (tensors(torch.zeros(1000, 8)), "begins with HELLO, not FORWARD"),
    "answer": (tensors(ROW, kind=Kind.RESULT), "begins with HELLO, not RESULT"),
    "welcome": (document(Kind.WELCOME, {"path": []}), "begins with HELLO, not WELCOME"),
    "no json": (Header(Kind.HELLO, body_size=3).pack() + b"{]}", "is not JSON"),
    "depths of json": (Header(Kind.HELLO, body_size=60000).pack() + b"[" * 60000, "is not JSON"),
}


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("what", BAD_HELLOS)
def test_a_bad_hello_is_answered_with_its_reason(what: str, hops: int) -> None:
    raw, reason = BAD_HELLOS[what]
    with undisturbed(stages(hops)) as (address, services):
        connection = stranger(address)
        connection._sock.sendall(raw)
        assert reason in error_of(connection)
        assert refused(services) == {"ProtocolError": 1}


def test_a_stranger_takes_no_memory_of_requests() -> None:
    """Not even for a frame that a stranger may send as far as its size goes."""
    raw = described(TensorSpec(DType.FLOAT32, (1000, 8)))
    with undisturbed(stages()) as (address, services):
        strangers = [stranger(address) for _ in range(20)]
        for each in strangers:
            each._sock.sendall(raw[:-1])
        for each in strangers:
            assert "begins with HELLO" in error_of(each)
        assert services[0].report().lent_bytes == 0


def test_a_request_that_would_be_refused_takes_no_memory() -> None:
    with undisturbed(stages(), memory_bytes=2**20) as (address, services):
        connection = client(address)
        connection._sock.sendall(described(TensorSpec(DType.FLOAT32, (1, 2**22)))[:200])
        assert "it must be (n, 8)" in error_of(connection)
        assert services[0].report().allocated_bytes < 2**20


def test_half_a_frame_then_silence_ends_the_session() -> None:
    with undisturbed(stages(2), silence_s=0.3) as (address, services):
        for length in (1, 31, 32, 60, 100, 130):
            connection = client(address)
            connection._sock.sendall(tensors(ROW)[:length])
            assert "half a frame, then nothing for 0.3 s" in error_of(connection)
        assert refused(services) == {"NetworkError": 6}


def test_half_a_hello_then_silence_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "HELLO_S", 0.3)
    with undisturbed(stages()) as (address, services):
        strangers = [stranger(address) for _ in range(3)]
        for each, length in zip(strangers, (0, 7, 40), strict=True):
            each._sock.sendall(document(Kind.HELLO, {"service": "toy"})[:length])
        for each in strangers:
            assert "no HELLO within 0.3 s" in error_of(each)
        assert refused(services) == {"NetworkError": 3}


def test_ten_thousand_connections_that_are_dropped_at_once() -> None:
    with undisturbed(stages()) as (address, services):
        for number in range(100):
            batch = [socket.create_connection(address) for _ in range(100)]
            for sock in batch:
                if number % 2:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
        until(lambda: services[0].report().open == 1, "none is left")


def test_silent_strangers_do_not_keep_clients_out() -> None:
    with undisturbed(stages(), max_sessions=100) as (address, services):
        strangers = [socket.create_connection(address) for _ in range(200)]
        clients = [client(address) for _ in range(20)]
        for each in clients:
            check(each)
            each.close()
        for sock in strangers:
            sock.close()
        assert refused(services)["silent"] >= 101


def test_more_clients_than_allowed_are_told_so() -> None:
    with undisturbed(stages(), max_sessions=3) as (address, services):
        clients = [client(address) for _ in range(2)]
        for _ in range(5):
            assert "the service has its most connections (3)" in error_of(stranger(address))
        for each in clients:
            check(each)
            each.close()
        assert refused(services)["NetworkError"] == 5


def small_buffers(address: Address) -> Connection:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(address)
    connection = Connection(sock, "the service", 2**26, 5.0)
    connection.send_document(Header(Kind.HELLO), {"service": "toy"})
    assert connection.receive().kind is Kind.WELCOME
    return connection


@pytest.mark.parametrize("hops", [1, 2])
def test_a_client_that_never_reads_holds_up_nobody_else(hops: int) -> None:
    """And what it is sent is bounded by its window, however much it asks for."""
    modules = [*stages(hops - 1), Wide()]
    answer = 4 * WIDE
    with undisturbed(modules, memory_bytes=3 * answer, in_flight=4, silence_s=3.0, max_body=2**26) as (
        address,
        services,
    ):
        mute = [small_buffers(address) for _ in range(3)]
        for each in mute:
            each._sock.settimeout(0.2)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                each._sock.sendall(tensors(torch.rand(1, 8)) * 20000)
        until(lambda: services[0]._dialogue.backlog.num_bytes > 3 * answer, "the memory is full")
        good = client(address)
        begin = time.monotonic()
        for number in range(10):
            ask(good, number, torch.full((1, 8), float(number)))
            frame = good.receive()
            assert frame.kind is Kind.RESULT, frame.document
            (output,) = tensors_in(frame, Role.SMASHED)
            assert output is not None
            assert len(output[0]) == WIDE
            frame.release()
        assert time.monotonic() - begin < 2.0
        assert services[0]._dialogue.backlog.num_bytes < 3 * 5 * answer
        good.close()
        until(lambda: refused(services).get("NetworkError") == 3, "those who do not read are turned away")
        for each in mute:
            each.close()


def test_pings_are_no_excuse_for_taking_no_answers() -> None:
    with undisturbed([Wide()], silence_s=0.5, max_body=2**26) as (address, services):
        mute = small_buffers(address)
        mute._sock.sendall(tensors(torch.rand(1, 8)))
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            while not refused(services):
                assert time.monotonic() - begin < 3.0
                mute._sock.send(document(Kind.PING))
                time.sleep(0.02)
        assert refused(services) == {"NetworkError": 1}
        mute.close()


@pytest.mark.parametrize("hops", [1, 3])
def test_a_client_that_vanishes_with_requests_under_way(hops: int) -> None:
    with undisturbed(stages(hops)) as (address, services):
        for number in range(30):
            connection = client(address)
            connection._sock.sendall(tensors(torch.rand(5, 8)) * (number % 20) + tensors(ROW)[: number * 4])
            if number % 3:
                connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection._sock.close()
        assert services[0].report().fault is None


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (lambda x: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda x: None, "TypeError"),
        (lambda x: (), "must return a tensor or a tuple"),
        (lambda x: {"a": x}, "must return a tensor or a tuple"),
        (lambda x: (x, 7), "must return a tensor or a tuple"),
        (lambda x: x.to(torch.complex64), "cannot cross a cut"),
        (lambda x: x.to_sparse(), "."),
        (lambda x: (x,) * 65, "65 tensors"),
        (lambda x: x.reshape((1,) * 7 + (1, 8)), "9 dimensions"),
        (lambda x: x.to("meta"), "meta"),
    ],
)
def test_a_stage_that_fails_ends_the_session_that_asked(
    what: Callable[[torch.Tensor], Any], reason: str, hops: int, caplog: pytest.LogCaptureFixture
) -> None:
    with undisturbed([*[Says(lambda x: x)] * (hops - 1), Says(what)]) as (address, services):
        connection = client(address)
        for number in range(4):
            ask(connection, number, -torch.ones(1, 8))
        assert re.search(reason, error_of(connection))
        assert sum(refused(services).values()) == 1
    caplog.clear()


def test_answers_that_are_due_come_before_the_error() -> None:
    with undisturbed([Wide()], max_body=2**26) as (address, services):
        connection = small_buffers(address)
        check_request = tensors(torch.rand(1, 8))
        connection._sock.sendall(check_request)
        until(lambda: services[0].report().counters.answered == 2, "it is computed")
        connection._sock.sendall(b"garbage" * 100)
        until(lambda: refused(services) == {"ProtocolError": 1}, "it is refused")
        assert connection.receive().kind is Kind.RESULT
        assert "not an msl peer" in error_of(connection)


@pytest.mark.parametrize("hops", [1, 3])
def test_half_closed_with_large_answers_due(hops: int) -> None:
    with undisturbed([*stages(hops - 1), Wide()], max_body=2**26) as (address, _):
        connection = client(address)
        connection._sock.sendall(tensors(torch.rand(1, 8)) * 12)
        connection._sock.shutdown(socket.SHUT_WR)
        for _ in range(12):
            frame = connection.receive()
            assert frame.kind is Kind.RESULT
            frame.release()
        assert connection._sock.recv(1) == b""
        connection.close()


# -- at rest


def test_nothing_turns_while_nothing_happens() -> None:
    """With clients that are idle, half-closed, refused, not reading, or in the middle of a frame."""
    with undisturbed([Wide()], max_body=2**26, in_flight=2) as (address, services):
        idle = [client(address), stranger(address)]
        half, part, mute, leaving = (small_buffers(address) for _ in range(4))
        half._sock.sendall(tensors(ROW) * 2)
        half._sock.shutdown(socket.SHUT_WR)
        part._sock.sendall(tensors(ROW)[:40])
        mute._sock.sendall(tensors(ROW) * 50)
        leaving._sock.sendall(b"x" * 64)
        until(lambda: services[0].report().counters.answered >= 5, "all are where they stay")
        time.sleep(0.2)
        before = time.process_time()
        time.sleep(1.0)
        assert time.process_time() - before < 0.1
        for each in (*idle, half, part, mute, leaving):
            each.close()


def test_closing_a_service_ends_its_sessions_and_threads_at_once() -> None:
    for _ in range(20):
        with serve(stages(2), InputSpec((8,), "float32")) as (address, services):
            connections = [client(address) for _ in range(3)]
            for connection in connections:
                connection._sock.sendall(tensors(ROW) * 5)
            begin = time.monotonic()
        assert time.monotonic() - begin < 1.0
        for service in services:
            assert is_empty(service)
            assert not any(thread.is_alive() for thread in service._threads)
            service.close()
        for connection in connections:
            connection.close()
