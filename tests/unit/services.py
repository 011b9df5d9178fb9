"""Services over loopback to test against, and a bare client of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from msl.net.connection import Connection
from msl.net.fabric import DirectFabric, endpoint_of
from msl.net.frame import Flag, Header, Kind, encode
from msl.pipeline.serving.compute import Inference
from msl.pipeline.serving.rules import HopRules
from msl.pipeline.serving.service import Service
from msl.pipeline.serving.turns import Turns
from msl.pipeline.wire import describe_all
from msl.plan import InputSpec


class Stages:
    def __init__(self, count: int) -> None:
        torch.manual_seed(0)
        self.modules = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(count)]
        self.whole = nn.Sequential(*self.modules).eval()


Address = tuple[str, int]


def serving(stages: Stages, **settings: Any) -> AbstractContextManager[tuple[Address, list[Service]]]:
    """The stages as the service `toy`, over loopback; its address and its hops."""
    return serve(stages.modules, InputSpec((8,), "float32"), **settings)


@contextmanager
def serve(modules: Sequence[nn.Module], *inputs: InputSpec, **settings: Any) -> Iterator[tuple[Address, list[Service]]]:
    services: list[Service] = []
    following = None
    count = len(modules)
    for hop in range(count, 0, -1):
        next_peer = f"nsf{hop + 1}" if hop < count else None
        rules = HopRules("toy", hop, f"nsf{hop}", f"n{hop}", next_peer, "j" * 32, "s", inputs, 7, **settings)
        fabric = DirectFabric("127.0.0.1", following)
        listener = fabric.listen()
        following = endpoint_of(listener)
        service = Service(rules, Inference(modules[hop - 1]), fabric, listener, Turns())
        service.start()
        services.insert(0, service)
    assert following is not None
    try:
        yield following, services
    finally:
        for service in services:
            service.close()


def connect(address: Address) -> Connection:
    connection = Connection(socket.create_connection(address, timeout=5), "the service", 2**20, 5.0)
    connection.send_document(Header(Kind.HELLO), {"service": "toy"})
    welcome = connection.receive()
    assert welcome.kind is Kind.WELCOME, welcome.document
    return connection


def ask(connection: Connection, number: int, inputs: torch.Tensor, flags: Flag = Flag(0)) -> None:
    specs, payloads = describe_all([inputs])
    connection.send(Header(Kind.FORWARD, flags, 0, number), specs, payloads)


def until(true: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


class AddsOne(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + 1


def requests(count: int, inputs: torch.Tensor) -> bytes:
    specs, payloads = describe_all([inputs])
    frames = (encode(Header(Kind.FORWARD, Flag(0), 0, number), specs, payloads) for number in range(count))
    return b"".join(piece for frame in frames for piece in frame)
