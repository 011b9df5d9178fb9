"""Many clients at once: every answer right, turns fair, requests merged, and memory within its bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import msl
from msl.errors import StageError
from msl.net.fabric import DirectFabric, endpoint_of
from msl.net.frame import Kind, Role
from msl.pipeline.serving.compute import inputs_of
from msl.pipeline.serving.request import Request
from msl.pipeline.serving.rules import HopRules
from msl.pipeline.serving.service import Service
from msl.pipeline.serving.turns import Turns
from msl.pipeline.wire import tensors_in
from msl.plan import InputSpec
from tests.unit.services import Address, AddsOne, Stages, ask, connect, requests, serve, serving, until


def load(address: Address, whole: nn.Module, seed: int, requests: int, exact: bool) -> int:
    """Ask with batches of random sizes, pipelined as deep as comes, and compare the answers; how many there were."""
    chance = np.random.default_rng(seed)
    checked = 0
    while checked < requests:  # and connect anew now and then
        with msl.Client(address, "toy") as client:
            inputs = [torch.from_numpy(chance.normal(size=(chance.integers(1, 9), 8))).float() for _ in range(10)]
            pending = [client.submit(each) for each in inputs]
            for each, answer in zip(inputs, pending, strict=True):
                with torch.inference_mode():
                    expected = whole(each)
                if exact:
                    assert torch.equal(answer.result(), expected)
                else:
                    torch.testing.assert_close(answer.result(), expected)
                checked += 1
    return checked


@pytest.mark.parametrize("hops", [1, 3])
def test_32_clients_at_once_get_the_unsplit_models_answers(hops: int) -> None:
    stages = Stages(hops)
    with serving(stages) as (address, services), ThreadPoolExecutor(32) as pool:
        done = [pool.submit(load, address, stages.whole, seed, 40, True) for seed in range(32)]
        assert sum(each.result() for each in done) == 32 * 40
        until(lambda: all(not service.report().open for service in services), "all sessions have ended")
        for service in services:
            report = service.report()
            assert report.counters.answered == report.counters.requests == report.counters.batches == 32 * 40
            assert not report.counters.refused
            assert not report.lent_bytes


class Widest(nn.Module):
    """Keeps the largest batch that it has seen."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen = max(self.seen, len(inputs))
        return self.inner(inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize("hops", [1, 3])
def test_merged_requests_are_answered_each_with_its_own(hops: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.services.Turns", partial(Turns, 5.0, 16))
    stages = Stages(hops)
    widest = [Widest(module) for module in stages.modules]
    with serve(widest, InputSpec((8,), "float32")) as (address, services), ThreadPoolExecutor(16) as pool:
        done = [pool.submit(load, address, stages.whole, seed, 40, False) for seed in range(16)]
        assert sum(each.result() for each in done) == 16 * 40
        for service, module in zip(services, widest, strict=True):
            counters = service.report().counters
            assert counters.answered == 16 * 40
            assert counters.batches < counters.answered / 1.5
            assert 8 < module.seen <= 16


def test_what_a_full_batch_leaves_waits_for_the_budget_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.services.Turns", partial(Turns, 10.0, 16))
    with serve([nn.Identity()], InputSpec((8,), "float32")) as (address, _):
        client = connect(address)
        taken = []
        for _ in range(9):
            for number in range(40):  # full ones, one after the other, are quick
                ask(client, number, torch.zeros(16, 8))
                client.receive().release()
            begin = time.monotonic()
            client._sock.sendall(requests(5, torch.zeros(4, 8)))
            for _ in range(5):
                client.receive().release()
            taken.append(time.monotonic() - begin)
        assert sorted(taken)[4] < 0.1
        client.close()


def test_a_request_that_cannot_be_merged_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that takes no more than one of them at once computes each by itself."""
    monkeypatch.setattr("tests.unit.services.Turns", partial(Turns, 20.0, 64))

    class Choosy(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if (inputs < 0).any():
                raise ValueError("less than nothing")
            return inputs

    with serve([Choosy()], InputSpec((8,), "float32")) as (address, _):
        clients = [connect(address) for _ in range(4)]
        for number, client in enumerate(clients):
            ask(client, number, torch.full((1, 8), -1.0 if number == 2 else 1.0))
        kinds = [client.receive().kind for client in clients]
        assert kinds == [Kind.RESULT, Kind.RESULT, Kind.ERROR, Kind.RESULT]
        for client in clients:
            client.close()


class Counts(nn.Module):
    """Counts its computations, and takes a little while for each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.count += 1
        time.sleep(0.002)
        return inputs + self.count - inputs


@pytest.mark.parametrize("flooding", [1, 5])
def test_a_flood_delays_others_by_a_computation_of_each_flooding_client(flooding: int) -> None:
    stage = Counts()
    with serve([stage], InputSpec((8,), "float32")) as (address, services):
        floods = [connect(address) for _ in range(flooding)]
        raw = requests(300, torch.zeros(1, 8))
        for flood in floods:
            flood._sock.sendall(raw)
        until(lambda: stage.count > 5, "the flood is there")
        single = connect(address)
        for number in range(10):
            before = services[0].report().counters.requests
            assert before < flooding * 300
            begin = stage.count
            ask(single, number, torch.zeros(1, 8))
            answer = single.receive()
            (output,) = tensors_in(answer, Role.SMASHED)
            assert output is not None
            # One that is under way, one of each other client, its own, and one begun before this was measured.
            assert float(output[0, 0]) - begin <= flooding + 3
            answer.release()
        for each in (*floods, single):
            each.close()


class Naps(nn.Module):
    """Takes long enough that one thread computes while the other one waits for the network."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        time.sleep(0.0003)
        return inputs


@pytest.mark.parametrize("stage", [Naps, nn.Identity])
@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_clients_whose_windows_fill_and_open_all_the_time_are_not_taken_for_gone(
    hops: int, window: int, stage: type[nn.Module]
) -> None:
    """An event may be looked at after what it tells of was read by the other thread."""
    total = 500
    stages = [stage() for _ in range(hops)]
    with serve(stages, InputSpec((8,), "float32"), in_flight=window, memory_bytes=4096 * 80) as (address, services):

        def flood() -> None:
            client = connect(address)
            raw = requests(total, torch.zeros(1, 8))

            def send() -> None:
                for position in range(0, len(raw), 5000):
                    client._sock.sendall(raw[position : position + 5000])

            sender = threading.Thread(target=send)
            sender.start()
            for number in range(total):
                answer = client.receive()
                assert (answer.kind, answer.header.micro_batch) == (Kind.RESULT, number), answer.document
                answer.release()
            sender.join()
            client.close()

        with ThreadPoolExecutor(4) as pool:
            for each in [pool.submit(flood) for _ in range(4)]:
                each.result()
        assert not services[0].report().counters.refused


def test_a_service_without_a_stage_computes_when_it_is_asked_to() -> None:
    rules = HopRules("toy", 1, "source", "n1", None, "", "", (InputSpec((8,), "float32"),), 0)
    listener = DirectFabric("127.0.0.1").listen()
    service = Service(rules, None, None, listener, Turns())
    service.start()

    def compute(waiting: Sequence[Request]) -> list[list[torch.Tensor]]:
        return [[tensor + 1 for tensor in inputs_of(request)] for request in waiting]

    stop = threading.Event()

    def work() -> int:
        done = step = 0
        while not stop.is_set():
            done += service.work(compute, step)
            step += 1
        return done

    stages = nn.Sequential(AddsOne())
    try:
        address = endpoint_of(listener)
        with ThreadPoolExecutor(9) as pool:
            working = pool.submit(work)
            done = [pool.submit(load, address, stages, seed, 50, True) for seed in range(8)]
            assert sum(each.result() for each in done) == 400
            stop.set()
            assert working.result() == 400
    finally:
        stop.set()
        service.close()


def test_computing_that_fails_tells_those_who_asked() -> None:
    rules = HopRules("toy", 1, "source", "n1", None, "", "", (InputSpec((8,), "float32"),), 0)
    listener = DirectFabric("127.0.0.1").listen()
    service = Service(rules, None, None, listener, Turns())
    service.start()
    try:
        client = connect(endpoint_of(listener))
        ask(client, 0, torch.zeros(1, 8))
        until(lambda: service.report().waiting == 1, "it waits")

        def fails(_: Sequence[Request]) -> list[list[torch.Tensor]]:
            raise StageError("the chain broke")

        with pytest.raises(StageError, match="the chain broke"):
            service.work(fails, 1)
        assert client.receive().kind is Kind.ERROR
        client.close()
        until(lambda: not service.report().open and not service.report().lent_bytes, "all is given back")
    finally:
        service.close()


def test_a_client_that_is_gone_while_its_request_is_computed() -> None:
    class Slow(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            time.sleep(0.1)
            return inputs

    with serve([Slow()], InputSpec((8,), "float32")) as (address, services):
        for _ in range(3):
            client = connect(address)
            client._sock.sendall(requests(8, torch.zeros(1, 8)))
            time.sleep(0.02)
            client.close()
        until(lambda: not services[0].report().open and not services[0].report().lent_bytes, "all is given back")
