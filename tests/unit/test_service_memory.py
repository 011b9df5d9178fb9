"""Memory of a service has its bounds: who does not read is not read from, and everybody has a turn in the end."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import msl
from msl.net.connection import Connection
from msl.net.frame import Header, Kind
from msl.plan import InputSpec
from tests.unit.services import Address, AddsOne, Stages, connect, requests, serve, until


class Wide(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[:, :1].expand(-1, 2**16).contiguous()


@pytest.mark.parametrize("hops", [1, 3])
def test_a_client_that_does_not_read_is_not_read_from_and_gets_all_answers_once_it_does(hops: int) -> None:
    window, answer, total = 4, 4 * 2**16, 400
    modules = [*Stages(hops - 1).modules, Wide()]
    with serve(modules, InputSpec((8,), "float32"), in_flight=window) as (address, services):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(address)
        client = Connection(sock, "the service", 2**20, 10.0)
        client.send_document(Header(Kind.HELLO), {"service": "toy"})
        assert client.receive().kind is Kind.WELCOME
        sender = threading.Thread(target=sock.sendall, args=(requests(total, torch.rand(1, 8)),))
        sender.start()

        def taken() -> int:
            return services[0].report().counters.requests

        until(lambda: taken() > window, "it has begun")
        before = -1
        while before != taken():
            before = taken()
            time.sleep(0.3)
        assert before < total / 2
        assert services[0]._dialogue.backlog.num_bytes <= window * (answer + 1024)
        for number in range(total):
            frame = client.receive()
            assert (frame.kind, frame.header.micro_batch) == (Kind.RESULT, number)
            frame.release()
        sender.join()
        client.close()


def ask_large(address: Address, seed: int, samples: int, width: int) -> int:
    torch.manual_seed(seed)
    inputs = torch.rand(samples, width)
    with msl.Client(address, "toy", timeout_s=30) as client:
        pending = [client.submit(inputs + number) for number in range(12)]
        for number, each in enumerate(pending):
            assert torch.equal(each.result(), inputs + number + 3)
    return 12


def test_little_memory_makes_clients_wait_and_never_for_ever() -> None:
    """Frames of 2 MiB both ways through three hops, each with memory for two."""
    width = 2**14
    spec = InputSpec((width,), "float32")
    frame = 32 * width * 4
    with (
        serve([AddsOne() for _ in range(3)], spec, memory_bytes=2 * frame) as (address, services),
        ThreadPoolExecutor(8) as pool,
    ):
        done = [pool.submit(ask_large, address, seed, 32 if seed % 4 else 1, width) for seed in range(8)]
        most = 0
        while not all(each.done() for each in done):
            most = max(most, *(service._dialogue.requests.lent_bytes for service in services))
            time.sleep(0.002)
        assert sum(each.result() for each in done) == 8 * 12
        assert most <= 2 * 2 * frame  # a buffer is of a power of two
        until(lambda: all(not service.report().lent_bytes for service in services), "all is given back")
        assert not any(service.report().counters.refused for service in services)


def test_a_request_larger_than_the_memory_has_its_turn_among_small_ones() -> None:
    stage = AddsOne()
    width = 2**10
    stop = threading.Event()

    def small(address: Address) -> None:
        with msl.Client(address, "toy") as client:
            while not stop.is_set():
                for each in [client.submit(np.zeros((4, width), np.float32)) for _ in range(8)]:
                    each.result()

    with (
        serve([stage], InputSpec((width,), "float32"), memory_bytes=2**18) as (address, _),
        ThreadPoolExecutor(6) as pool,
    ):
        done = [pool.submit(small, address) for _ in range(6)]
        try:
            with msl.Client(address, "toy", timeout_s=20) as client:
                for _ in range(3):
                    assert client.predict(np.zeros((512, width), np.float32)).sum() == 512 * width
        finally:
            stop.set()
        for each in done:
            each.result()


def test_who_stalls_with_memory_that_others_wait_for_is_ended() -> None:
    """However steadily its bytes drip."""
    width = 2**10
    with serve([AddsOne()], InputSpec((width,), "float32"), memory_bytes=2**18, silence_s=0.5) as (address, services):
        slow = connect(address)
        raw = requests(1, torch.zeros(40, width))
        slow._sock.sendall(raw[:1000])
        with msl.Client(address, "toy") as client:
            pending = client.submit(np.zeros((40, width), np.float32))
            for position in range(1000, 1200):
                if services[0].report().counters.refused:
                    break
                slow._sock.sendall(raw[position : position + 1])
                time.sleep(0.02)
            assert pending.result().sum() == 40 * width
        answer = slow.receive()
        assert "while others wait for its memory" in str(answer.document.get("message"))
        slow.close()
