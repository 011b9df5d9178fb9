"""What a client says of wrong inputs, and of services that fail, are silent, or do not keep to the protocol."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from msl.client import Client
from msl.errors import ConfigError, MslError, NetworkError, ProtocolError, StageError
from msl.net.frame import Kind
from tests.unit.pretenders import FLOATS, WELCOME, Calls, floats, pretending, result, said
from tests.unit.services import Stages, serve, serving

# -- what is wrong with the inputs


@pytest.mark.parametrize(
    ("inputs", "wording"),
    [
        ((), "0 inputs; the model has 1"),
        ((floats(), floats()), "2 inputs; the model has 1"),
        ((torch.zeros(2, 9),), "input 0 has the shape (2, 9); it must be (n, 8)"),
        ((np.zeros(8, np.float32),), "input 0 has the shape (8,); it must be (n, 8)"),
        ((np.float32(1),), "input 0 is a float32; pass a numpy array or a torch tensor"),
        ((np.zeros((2, 8)),), "input 0 is of float64; it must be of float32"),
        ((torch.zeros(2, 8).half(),), "input 0 is of float16; it must be of float32"),
        ((np.zeros((2, 8), "datetime64[s]"),), "input 0 is of datetime64[s]; it must be of float32"),
        (([[0.0] * 8],), "input 0 is a list; pass a numpy array or a torch tensor"),
        ((torch.zeros(0, 8),), "0 samples; the service takes 1 to 16 in a request"),
        ((torch.zeros(17, 8),), "17 samples; the service takes 1 to 16 in a request"),
    ],
)
def test_inputs_that_are_not_the_models_are_refused_and_the_client_goes_on(
    inputs: tuple[object, ...], wording: str
) -> None:
    with serving(Stages(1), max_samples=16) as (address, services), Client(address, "toy") as client:
        with pytest.raises(ConfigError) as caught:
            client.predict(*inputs)  # type: ignore[arg-type]
        assert str(caught.value) == wording
        assert client.predict(floats()).shape == (2, 8)
        assert services[0].report().counters.requests == 1


def test_inputs_of_different_numbers_of_samples_are_refused() -> None:
    with (
        serve([Calls(lambda x, y: x + y)], FLOATS, FLOATS) as (address, _),
        Client(address, "toy") as client,
        pytest.raises(ConfigError, match="input 1 has 3 samples, input 0 has 2"),
    ):
        client.predict(floats(2), floats(3))


@pytest.mark.parametrize("address", ["", "host", "host:", ":7400", "::1:7400", "[::1]", "host:0", "host:65536", "h:x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="no address of a service"):
        Client(address, "toy")


# -- what goes wrong


def test_another_services_name_is_refused_with_the_reason() -> None:
    with serving(Stages(1)) as (address, _):
        with pytest.raises(ProtocolError) as caught:
            Client(address, "toys")
        assert str(caught.value) == "host n1, stage nsf1: the HELLO is for service 'toys', not 'toy'"


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NetworkError, match=rf"cannot connect to 127.0.0.1:{port}: Connection refused"):
        Client(("127.0.0.1", port), "toy")


def test_a_stage_that_fails_is_told_with_host_and_stage() -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such luck")

    with serve([nn.Identity(), Calls(fail)], FLOATS) as (address, _), Client(address, "toy") as client:
        first, second = client.submit(floats()), client.submit(floats())
        for pending in (second, first):
            with pytest.raises(StageError, match="host n2, stage nsf2: ValueError: no such luck"):
                pending.result()
        with pytest.raises(StageError, match="no such luck"):
            client.predict(floats())


def test_a_service_that_dies_in_the_middle_is_told_and_nothing_hangs() -> None:
    began = threading.Event()

    def slow(x: torch.Tensor) -> torch.Tensor:
        began.set()
        time.sleep(0.2)
        return x

    with serve([nn.Identity(), Calls(slow)], FLOATS) as (address, services), Client(address, "toy") as client:
        first, second = client.submit(floats()), client.submit(floats())
        assert began.wait(5)
        services[1].close()
        first.result()  # was begun, and is ended
        with pytest.raises(NetworkError, match=r"host n1, stage nsf1: .*nsf2 (closed|broke)"):
            second.result()
    with serve([nn.Identity()], FLOATS) as (address, services), Client(address, "toy") as client:
        client.predict(floats())
        services[0].close()
        with pytest.raises(NetworkError, match=r"the service 'toy' at .* closed the connection|connection .* broke"):
            client.predict(floats())


def test_a_silent_listener_is_given_up() -> None:
    with pretending() as address:
        begin = time.monotonic()
        with pytest.raises(NetworkError, match=r"no WELCOME from the service 'toy' at .* within 0\.2 s"):
            Client(address, "toy", connect_s=0.2)
        assert time.monotonic() - begin < 1


def drip(sock: socket.socket) -> None:
    for byte in result(0, 2, 8) * 100:
        sock.sendall(bytes([byte]))
        time.sleep(0.02)


def ping(sock: socket.socket) -> None:
    while True:
        sock.sendall(said(Kind.PING))
        time.sleep(0.02)


@pytest.mark.parametrize("then", [None, drip, ping])
def test_an_answer_that_does_not_come_in_time_is_given_up_whatever_else_comes(
    then: Callable[[socket.socket], object] | None,
) -> None:
    with (
        pretending(said(Kind.WELCOME, WELCOME), then=then) as address,
        Client(address, "toy", timeout_s=0.3) as client,
    ):
        begin = time.monotonic()
        with pytest.raises(NetworkError, match=r"no answer from the service 'toy' at .* within 0\.3 s"):
            client.predict(floats())
        assert time.monotonic() - begin < 1


def test_a_request_that_is_not_taken_in_time_is_given_up() -> None:
    welcome = said(Kind.WELCOME, {**WELCOME, "inputs": [{"shape": [2**20], "dtype": "float32"}]})
    with (
        pretending(welcome) as address,
        Client(address, "toy", timeout_s=0.3) as client,
        pytest.raises(NetworkError, match=r"the service 'toy' at .* did not take a request within 0\.3 s"),
    ):
        client.predict(torch.zeros(8, 2**20))


def test_a_refusal_in_the_middle_of_a_request_is_told() -> None:
    welcome = said(Kind.WELCOME, {**WELCOME, "inputs": [{"shape": [2**20], "dtype": "float32"}]})
    refusal = {"kind": "StageError", "stage": "nsf1", "host": "n1", "message": "too much"}
    with (
        pretending(welcome, said(Kind.ERROR, refusal)) as address,
        Client(address, "toy", timeout_s=5) as client,
        pytest.raises(StageError, match="host n1, stage nsf1: too much"),
    ):
        client.predict(torch.zeros(8, 2**20))


@pytest.mark.parametrize(
    ("answer", "wording"),
    [
        (result(1, 2, 8), "a RESULT of request 1 of the service .* that was not due"),
        (result(0, 2, 8) * 2, None),
        (said(Kind.WELCOME, WELCOME), "a WELCOME of request 0 of the service .* that was not due"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(8), "not an msl peer"),
        (result(0, 2, 8)[:80], "closed the connection in the middle of a frame"),
        (b"", "closed the connection"),
    ],
)
def test_an_answer_that_is_none_is_refused(answer: bytes, wording: str | None) -> None:
    with (
        pretending(said(Kind.WELCOME, WELCOME), answer, then=socket.socket.close) as address,
        Client(address, "toy") as client,
    ):
        if wording is None:
            client.predict(floats())
            wording = "that was not due|closed the connection|broke"
        with pytest.raises(NetworkError, match=wording):
            client.predict(floats())


@pytest.mark.parametrize(
    "welcome",
    [
        {},
        {**WELCOME, "inputs": 3},
        {**WELCOME, "inputs": [{"shape": [8]}]},
        {**WELCOME, "step": "seven"},
        {**WELCOME, "path": [1]},
    ],
)
def test_a_welcome_that_cannot_be_read_is_refused(welcome: dict[str, object]) -> None:
    with (
        pretending(said(Kind.WELCOME, welcome)) as address,
        pytest.raises(ProtocolError, match=r"a WELCOME of the service 'toy' at .* that cannot be read"),
    ):
        Client(address, "toy")


def test_an_answer_larger_than_allowed_is_refused_before_memory_is_taken() -> None:
    with (
        pretending(said(Kind.WELCOME, WELCOME), result(0, 2**19)) as address,
        Client(address, "toy", max_frame_mb=1) as client,
        pytest.raises(ProtocolError, match=r"a frame of .* bytes"),
    ):
        client.predict(floats())


def test_a_closed_client_says_so() -> None:
    with serving(Stages(1)) as (address, _):
        with Client(address, "toy") as client:
            pending = client.submit(floats())
        client.close()
        for ask in (pending.result, lambda: client.predict(floats())):
            with pytest.raises(MslError, match="was closed on this side"):
                ask()
