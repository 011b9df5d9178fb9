"""A next hop that fails in any way ends the sessions that go through it, with its reason, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from msl.net.connection import Connection, Frame
from msl.net.fabric import DirectFabric, endpoint_of
from msl.net.frame import (
    Flag,
    Header,
    Kind,
    encode,
)
from msl.pipeline.serving.compute import Inference
from msl.pipeline.serving.rules import HopRules
from msl.pipeline.serving.service import Service
from msl.pipeline.serving.turns import Turns
from msl.pipeline.wire import describe_all
from msl.plan import InputSpec
from tests.unit.services import Address, ask, until
from tests.unit.strangers import (
    ROW,
    document,
    error_of,
    hello,
    is_empty,
    num_fds,
)


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
