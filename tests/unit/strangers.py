"""Whoever talks to a service in a test, good or bad, and stages that such tests need."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import torch
from torch import nn

from msl.net.connection import Connection
from msl.net.frame import (
    Flag,
    Header,
    Kind,
    TensorSpec,
    encode,
    encode_document,
)
from msl.pipeline.serving.service import Service
from msl.pipeline.wire import describe_all
from msl.plan import InputSpec
from tests.unit.services import Address, Stages, ask, serve, until

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
            assert not service._poller._watched
            assert not service._poller._interest
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
