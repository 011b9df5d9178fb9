"""Listeners that pretend to be a service, and what clients ask them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import torch
from torch import nn

from msl.net.frame import DType, Header, Kind, TensorSpec, encode, encode_document
from msl.plan import InputSpec
from tests.unit.services import Address

FLOATS = InputSpec((8,), "float32")
WELCOME = {
    "path": [{"hop": 1, "name": "nsf1", "host": "n1"}],
    "service": "toy",
    "step": 7,
    "inputs": [{"shape": [8], "dtype": "float32"}],
    "in_flight": 4,
    "max_samples": 16,
}


class Calls(nn.Module):
    """A stage made of a function."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(*inputs)


def floats(samples: int = 2) -> torch.Tensor:
    return torch.randn(samples, 8)


@contextlib.contextmanager
def pretending(*answers: bytes, then: Callable[[socket.socket], object] | None = None) -> Iterator[Address]:
    """A listener that sends `answers`, one as each thing arrives, and then is silent."""

    def speak() -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(ConnectionError):
            for answer in answers:
                if not sock.recv(65536):
                    return
                sock.sendall(answer)
            if then is not None:
                then(sock)
            else:
                closed.wait(10)

    closed = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        yield listener.getsockname()
        closed.set()
        thread.join(timeout=5)
        assert not thread.is_alive()


def said(kind: Kind, document: dict[str, object] | None = None) -> bytes:
    return b"".join(encode_document(Header(kind), document))


def result(number: int, *shape: int) -> bytes:
    spec = TensorSpec(DType.FLOAT32, shape)
    return b"".join(encode(Header(Kind.RESULT, micro_batch=number), [spec], [memoryview(bytes(spec.num_bytes))]))
