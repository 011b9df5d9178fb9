"""One hop of a service and a chain of them, over loopback, without Ray or root."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from msl.net.connection import Connection
from msl.net.fabric import DirectFabric, endpoint_of
from msl.net.frame import Flag, Header, Kind, Role
from msl.pipeline.serving.compute import Inference
from msl.pipeline.serving.rules import HopRules
from msl.pipeline.serving.service import Service
from msl.pipeline.serving.turns import Turns
from msl.pipeline.wire import describe_all, tensors_in
from msl.plan import InputSpec


class Stages:
    def __init__(self, count: int) -> None:
        torch.manual_seed(0)
        self.modules = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(count)]
        self.whole = nn.Sequential(*self.modules).eval()


@contextmanager
def serving(stages: Stages, **settings: object) -> Iterator[tuple[tuple[str, int], list[Service]]]:
    services: list[Service] = []
    following = None
    count = len(stages.modules)
    for hop in range(count, 0, -1):
        rules = HopRules(
            "toy",
            hop,
            f"nsf{hop}",
            f"n{hop}",
            f"nsf{hop + 1}" if hop < count else None,
            "j" * 32,
            "s",
            (InputSpec((8,), "float32"),),
            7,
            **settings,
        )
        fabric = DirectFabric("127.0.0.1", following)
        listener = fabric.listen()
        following = endpoint_of(listener)
        service = Service(rules, Inference(stages.modules[hop - 1]), fabric, listener, Turns())
        service.start()
        services.insert(0, service)
    assert following is not None
    try:
        yield following, services
    finally:
        for service in services:
            service.close()


def connect(address: tuple[str, int]) -> Connection:
    connection = Connection(socket.create_connection(address, timeout=5), "the service", 2**20, 5.0)
    connection.send_document(Header(Kind.HELLO), {"service": "toy"})
    welcome = connection.receive()
    assert welcome.kind is Kind.WELCOME, welcome.document
    return connection


def ask(connection: Connection, number: int, inputs: torch.Tensor, flags: Flag = Flag(0)) -> None:
    specs, payloads = describe_all([inputs])
    connection.send(Header(Kind.FORWARD, flags, 0, number), specs, payloads)


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


@pytest.mark.parametrize("hops", [1, 3])
def test_time(hops: int) -> None:
    import time

    stages = Stages(hops)
    with serving(stages) as (address, services):
        connection = connect(address)
        inputs = torch.randn(1, 8)
        took = []
        for number in range(1000):
            begin = time.perf_counter()
            ask(connection, number, inputs)
            connection.receive().release()
            took.append(time.perf_counter() - begin)
        connection.close()
        took.sort()
        print(hops, "p50", took[500] * 1e6, "p99", took[990] * 1e6)
        print(services[0].report())
