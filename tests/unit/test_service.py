"""One hop of a service and a chain of them, over loopback, without Ray or root."""

from __future__ import annotations

import socket

import torch

from msl.net.frame import Flag, Header, Kind, Role, encode, encode_document
from msl.pipeline.wire import describe_all, tensors_in
from tests.unit.services import Stages, ask, connect, serving


def test_answers_equal_the_unsplit_models() -> None:
    stages = Stages(3)
    with serving(stages) as (address, _):
        connection = connect(address)
        for number in range(5):
            inputs = torch.randn(number + 1, 8)
            ask(connection, number, inputs)
            answer = connection.receive()
            assert answer.header.micro_batch == number
            (output,) = tensors_in(answer, Role.SMASHED)
            with torch.inference_mode():
                assert torch.equal(output, stages.whole(inputs))
        connection.close()


def test_requests_that_arrive_all_at_once_are_all_answered() -> None:
    """More than are taken in, and all in one piece: nothing arrives any more that would wake the service."""
    with serving(Stages(2), in_flight=3) as (address, _):
        connection = connect(address)
        frames = []
        for number in range(50):
            specs, payloads = describe_all([torch.randn(1, 8)])
            frames += encode(Header(Kind.FORWARD, Flag(0), 0, number), specs, payloads)
            frames += encode_document(Header(Kind.PING))
        connection._sock.sendall(b"".join(frames))
        for number in range(50):
            answer = connection.receive()
            assert (answer.kind, answer.header.micro_batch) == (Kind.RESULT, number)
            answer.release()
        connection.close()


def test_a_client_that_has_said_all_gets_all_answers() -> None:
    with serving(Stages(2)) as (address, _):
        connection = connect(address)
        for number in range(20):
            ask(connection, number, torch.randn(2, 8))
        connection._sock.shutdown(socket.SHUT_WR)
        assert [connection.receive().header.micro_batch for _ in range(20)] == list(range(20))
        assert connection._sock.recv(1) == b""
        connection.close()
