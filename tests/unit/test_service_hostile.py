"""Whatever a peer does to a service ends its own session alone, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from msl.net.connection import Connection, Frame
from msl.net.fabric import DirectFabric, endpoint_of
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
    encode,
    encode_document,
)
from msl.pipeline.serving import dialogue
from msl.pipeline.serving.compute import Inference
from msl.pipeline.serving.rules import HopRules
from msl.pipeline.serving.service import Service
from msl.pipeline.serving.turns import Turns
from msl.pipeline.wire import describe_all, tensors_in
from msl.plan import InputSpec
from tests.unit.services import Address, Stages, ask, serve

WIDE = 2**20
"""Values of an answer of the stage `Wide`: 4 MiB for each sample."""


class Wide(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[:, :1].expand(-1, WIDE).contiguous()


class Says(nn.Module):
    """Returns something else, if the first number is negative."""

    def __init__(self, what: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self._what = what

    def forward(self, inputs: torch.Tensor) -> Any:
        return self._what(inputs) if inputs[0, 0] < 0 else inputs


def until(true: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def num_fds() -> int:
    return int(psutil.Process().num_fds())


def is_empty(service: Service) -> bool:
    report = service.report()
    return not report.open and not report.lent_bytes and not report.waiting and not service._dialogue.backlog.num_bytes


@contextmanager
def undisturbed(modules: Sequence[nn.Module], **settings: Any) -> Iterator[tuple[Address, list[Service]]]:
    """A service with a good client, that goes on as before; afterwards all is as it was."""
    before = num_fds()
    with serve(modules, InputSpec((8,), "float32"), **settings) as (address, services):
        good = client(address)
        check(good)
        yield address, services
        check(good)
        good.close()
        for service in services:
            until(partial(is_empty, service), f"all is given back: {service.report()}")
            assert service.report().fault is None
            assert service.report().allocated_bytes < 65 * 2**20
            assert not service._watched
            assert not service._interest
            assert not service._dialogue.starved
    until(lambda: num_fds() == before, f"descriptors: {before} before, {num_fds()} after")


def check(connection: Connection) -> None:
    ask(connection, 77, torch.rand(1, 8))
    answer = connection.receive()
    assert (answer.kind, answer.header.micro_batch) == (Kind.RESULT, 77), answer.document
    answer.release()


def stages(hops: int = 1) -> list[nn.Sequential]:
    return Stages(hops).modules


def refused(services: Sequence[Service]) -> dict[str, int]:
    return dict(services[0].report().counters.refused)


def error_of(connection: Connection) -> str:
    """The reason of an ERROR, behind which the connection ends."""
    while (frame := connection.receive()).kind is Kind.RESULT:
        frame.release()
    assert frame.kind is Kind.ERROR
    assert connection._sock.recv(1) == b""
    connection.close()
    return str(frame.document["message"])


def stranger(address: Address) -> Connection:
    return Connection(socket.create_connection(address, timeout=5), "the service", 2**26, 5.0)


def hello(address: Address) -> Connection:
    connection = stranger(address)
    connection.send_document(Header(Kind.HELLO), {"service": "toy"})
    return connection


def client(address: Address) -> Connection:
    connection = hello(address)
    welcome = connection.receive()
    assert welcome.kind is Kind.WELCOME, welcome.document
    return connection


def tensors(*values: torch.Tensor, kind: Kind = Kind.FORWARD, flags: Flag = Flag(0)) -> bytes:
    specs, payloads = describe_all(values)
    return b"".join(encode(Header(kind, flags), specs, payloads))


def document(kind: Kind, content: dict[str, Any] | None = None) -> bytes:
    return b"".join(encode_document(Header(kind), content))


def described(spec: TensorSpec) -> bytes:
    return b"".join(encode(Header(Kind.FORWARD), [spec], [memoryview(bytes(spec.num_bytes))]))


ROW = torch.zeros(1, 8)
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
    monkeypatch.setattr(dialogue, "HELLO_S", 0.3)
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


# -- the next hop


class NextHop:
    """A next hop that a test plays, in front of it a service of one hop."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(5)

    def welcome(self) -> Connection:
        connection = self.accept()
        connection.send_document(Header(Kind.WELCOME), {"path": [{"hop": 2, "name": "played", "host": "n2"}]})
        return connection

    def accept(self) -> Connection:
        connection = Connection(self.listener.accept()[0], "the hop before", 2**26, 5.0)
        assert connection.receive().kind is Kind.HELLO
        return connection


@contextmanager
def before(next_hop: NextHop, **settings: Any) -> Iterator[tuple[Address, Service]]:
    descriptors = num_fds()
    inputs = (InputSpec((8,), "float32"),)
    rules = HopRules("toy", 1, "nsf1", "n1", "nsf2 on host n2", "j" * 32, "s", inputs, 7, **settings)
    fabric = DirectFabric("127.0.0.1", endpoint_of(next_hop.listener))
    listener = fabric.listen()
    service = Service(rules, Inference(nn.Identity()), fabric, listener, Turns())
    service.start()
    try:
        yield endpoint_of(listener), service
        until(lambda: is_empty(service), f"all is given back: {service.report()}")
        assert service.report().fault is None
    finally:
        service.close()
        next_hop.listener.close()
    until(lambda: num_fds() == descriptors - 1, "descriptors are given back")


def test_a_next_hop_that_does_not_listen() -> None:
    next_hop = NextHop()
    with before(next_hop) as (address, service):
        next_hop.listener.close()
        message = error_of(hello(address))
        assert message.startswith(("cannot connect to nsf2 on host n2", "nsf2 on host n2 cannot be reached"))
        assert "Connection refused" in message
        assert service.report().counters.refused == {"NetworkError": 1}


def test_a_next_hop_that_refuses() -> None:
    next_hop = NextHop()
    with before(next_hop) as (address, _):
        connection = hello(address)
        following = next_hop.accept()
        following.send_document(Header(Kind.ERROR), {"kind": "ProtocolError", "message": "go\naway"})
        assert error_of(connection) == "nsf2 on host n2 refused the connection: go away"
        following.close()


@pytest.mark.parametrize(("welcomed", "setting"), [(False, "connect_s"), (True, "answer_s")])
def test_a_next_hop_that_never_answers(welcomed: bool, setting: str) -> None:
    next_hop = NextHop()
    with before(next_hop, **{setting: 0.3}) as (address, _):
        connection = hello(address)
        following = next_hop.welcome() if welcomed else next_hop.accept()
        if welcomed:
            assert connection.receive().kind is Kind.WELCOME
            ask(connection, 0, ROW)
        assert error_of(connection).startswith("no answer from nsf2 on host n2 within 0.3 s")
        following.close()


def test_a_next_hop_that_takes_nothing() -> None:
    next_hop = NextHop()
    next_hop.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with before(next_hop, silence_s=0.5, max_samples=2**20, max_body=2**26) as (address, _):
        connection = hello(address)
        following = next_hop.welcome()
        assert connection.receive().kind is Kind.WELCOME
        ask(connection, 0, torch.zeros(2**18, 8))
        assert error_of(connection) == "nsf2 on host n2 took nothing for 0.5 s (timeouts.silence_s)"
        following.close()


def frame_of(kind: Kind, number: int, tensors: int = 1) -> bytes:
    specs, payloads = describe_all([ROW] * tensors)
    return b"".join(encode(Header(kind, Flag(0), 0, number), specs, payloads))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "nsf2 on host n2 closed the connection"),
        (frame_of(Kind.RESULT, 0)[:50], "closed the connection in the middle of a frame"),
        (b"x" * 64, "not an msl peer"),
        (frame_of(Kind.RESULT, 5), "a RESULT of request 5 that was not due"),
        (frame_of(Kind.RESULT, 0) * 2, "a RESULT of request 0 that was not due"),
        (frame_of(Kind.FORWARD, 0), "a FORWARD frame; the next hop answers with RESULT"),
        (frame_of(Kind.RESULT, 0, 64), "a frame of 65 tensors"),
        (document(Kind.WELCOME, {"path": []}), "a WELCOME of request 0 that was not due"),
        (document(Kind.ERROR, {"kind": "StageError", "message": "it broke", "stage": "sink"}), "it broke"),
        (document(Kind.ERROR), "None"),
    ],
)
def test_a_next_hop_that_answers_wrong_or_dies(answer: bytes, reason: str) -> None:
    next_hop = NextHop()
    with before(next_hop) as (address, _):
        connection = hello(address)
        following = next_hop.welcome()
        assert connection.receive().kind is Kind.WELCOME
        for number in range(3):
            ask(connection, number, ROW, Flag.TRACE)
        for _ in range(3):
            following.receive().release()
        following._sock.sendall(answer)
        following._sock.shutdown(socket.SHUT_WR)
        frame: Frame = connection.receive()
        while frame.kind is Kind.RESULT:
            frame.release()
            frame = connection.receive()
        assert frame.kind is Kind.ERROR
        assert reason in str(frame.document.get("message"))
        connection.close()
        following.close()


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
