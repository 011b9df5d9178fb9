"""The client against real services over loopback, and against listeners that do not keep to the protocol."""

from __future__ import annotations

import contextlib
import gc
import itertools
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

import msl
from msl.client import Client
from msl.errors import ConfigError, MslError, NetworkError, ProtocolError, StageError
from msl.net.frame import DType, Header, Kind, TensorSpec, encode, encode_document
from msl.net.waterfall import activities, waterfall
from msl.plan import InputSpec
from tests.unit.services import Address, Stages, serve, serving

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


# -- answers


@pytest.mark.parametrize("hops", [1, 3])
def test_answers_are_those_of_the_unsplit_model_bit_for_bit(hops: int) -> None:
    stages = Stages(hops)
    with serving(stages) as (address, _), msl.Client(address, "toy") as client:
        for samples in (1, 2, 33):
            inputs = floats(samples)
            with torch.inference_mode():
                expected = stages.whole(inputs)
            as_torch = client.predict(inputs)
            assert isinstance(as_torch, torch.Tensor)
            assert torch.equal(as_torch, expected)
            as_numpy = client.predict(inputs.numpy())
            assert isinstance(as_numpy, np.ndarray)
            assert as_numpy.tobytes() == expected.numpy().tobytes()


def test_the_client_knows_what_welcome_told() -> None:
    with (
        serving(Stages(2), in_flight=5, max_samples=9) as (address, _),
        Client(f"{address[0]}:{address[1]}", "toy") as client,
    ):
        assert client.inputs == (FLOATS,)
        assert [hop["name"] for hop in client.path] == ["nsf1", "nsf2"]
        assert (client.step, client.in_flight, client.max_samples) == (7, 5, 9)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_outputs_own_their_memory(kind: str) -> None:
    with serving(Stages(1)) as (address, _), Client(address, "toy") as client:
        inputs = [floats(4) if kind == "torch" else floats(4).numpy() for _ in range(5)]
        outputs = [client.predict(one) for one in inputs]
        copies = [output + 0 for output in outputs]
        for one in reversed(inputs):
            client.predict(one)
        for output, copy in zip(outputs, copies, strict=True):
            assert (output == copy).all()
            if isinstance(output, np.ndarray):
                assert output.flags.owndata
                output += 1  # and can be written to


def test_several_inputs_and_outputs_of_other_types_come_as_they_are() -> None:
    modules = [Calls(lambda x, ids: (x * 2, ids + 1, ids > 3, x.sum()))]
    with serve(modules, FLOATS, InputSpec((), "int64")) as (address, _), Client(address, "toy") as client:
        x, ids = floats(3), torch.tensor([1, 5, 9])
        for inputs in ((x, ids), (x.numpy(), ids.numpy())):
            doubled, more, large, total = client.predict(*inputs)
            assert (doubled == inputs[0] * 2).all()
            assert more.tolist() == [2, 6, 10]
            assert large.tolist() == [False, True, True]
            assert tuple(total.shape) == ()


def test_channels_last_goes_both_ways() -> None:
    layouts = []

    def look(x: torch.Tensor) -> torch.Tensor:
        layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return (x + 1).contiguous(memory_format=torch.channels_last)

    with serve([Calls(look)], InputSpec((3, 4, 5), "float32")) as (address, _), Client(address, "toy") as client:
        images = torch.randn(2, 3, 4, 5)
        assert torch.equal(client.predict(images), images + 1)
        assert np.array_equal(client.predict(images.numpy()), images.numpy() + 1)
        answer = client.predict(images.contiguous(memory_format=torch.channels_last))
        assert torch.equal(answer, images + 1)
        assert answer.is_contiguous(memory_format=torch.channels_last)
    assert layouts == [False, False, True]


def test_arrays_that_do_not_lie_in_order_are_sent_all_the_same() -> None:
    stages = Stages(1)
    with serving(stages) as (address, _), Client(address, "toy") as client:
        wide = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
        expected = client.predict(np.ascontiguousarray(wide.T))
        for same in (wide.T, np.ascontiguousarray(wide.T).astype(">f4"), torch.from_numpy(wide).T):
            assert np.array_equal(np.asarray(client.predict(same)), expected)


def test_bfloat16_is_for_torch_alone_and_numpy_is_told() -> None:
    with serve([Calls(lambda x: x.bfloat16())], FLOATS) as (address, _), Client(address, "toy") as client:
        with pytest.raises(ConfigError, match=r"the model returns a tensor of bfloat16, .*: pass torch tensors"):
            client.predict(floats().numpy())
        inputs = floats()
        assert torch.equal(client.predict(inputs), inputs.bfloat16())
    with serve([Calls(lambda x: x)], InputSpec((8,), "bfloat16")) as (address, _), Client(address, "toy") as client:
        with pytest.raises(ConfigError, match=r"of float32; it must be of bfloat16, .*: pass a torch tensor"):
            client.predict(floats().numpy())
        assert torch.equal(client.predict(inputs.bfloat16()), inputs.bfloat16())


# -- several at once


def test_fifty_requests_of_different_sizes_are_answered_whatever_the_order_in_which_they_are_asked_for() -> None:
    stages = Stages(3)
    with serving(stages, in_flight=3) as (address, _), Client(address, "toy") as client:
        inputs = [floats(1 + number * 7 % 50) for number in range(50)]
        pending = [client.submit(one) for one in inputs]
        assert not pending[-1].done
        order = torch.randperm(50).tolist()
        with torch.inference_mode():
            assert all(torch.equal(pending[number].result(), stages.whole(inputs[number])) for number in order)
        assert torch.equal(pending[7].result(), pending[7].result())


def test_large_requests_do_not_stand_in_the_way_of_large_answers() -> None:
    """Both sides' socket buffers are full: who sends must read meanwhile."""
    inputs = torch.randn(1, 250_000)
    echo = [Calls(lambda x: torch.cat([x, x]))]
    spec = InputSpec((250_000,), "float32")
    with (
        serve(echo, spec, in_flight=16, memory_bytes=2**20) as (address, _),
        Client(address, "toy", timeout_s=10) as client,
    ):
        pending = [client.submit(inputs) for _ in range(40)]
        assert all(torch.equal(one.result()[1:], inputs) for one in pending)


def test_inputs_may_be_changed_once_they_are_submitted() -> None:
    with serve([Calls(lambda x: x)], FLOATS) as (address, _), Client(address, "toy") as client:
        array = np.zeros((2, 8), np.float32)
        pending = []
        for number in range(6):
            array[:] = number
            pending.append(client.submit(array))
        assert [float(one.result()[0, 0]) for one in pending] == list(range(6))


def test_answers_that_nobody_asks_for_are_forgotten() -> None:
    with serve([Calls(lambda x: x)], FLOATS) as (address, _), Client(address, "toy") as client:
        forgotten = weakref.ref(client.submit(floats()))
        for _ in range(10):
            client.predict(floats())
        gc.collect()
        assert forgotten() is None


# -- where the time goes


def test_the_parts_of_a_trace_add_up_to_the_whole() -> None:
    def slow(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return x

    modules = [nn.Identity(), Calls(slow), nn.Identity()]
    with serve(modules, FLOATS) as (address, _), Client(address, "toy") as client:
        assert client.submit(floats()).trace is None
        pending = client.submit(floats(5), trace=True)
        pending.result()
        trace = pending.trace
        assert trace is not None
        assert [hop.hop for hop in trace.hops] == [1, 2, 3]
        assert trace.names == ("nsf1 on n1", "nsf2 on n2", "nsf3 on n3")
        own = sum(hop.queue_ns + hop.compute_ns + hop.serialise_ns + hop.socket_ns for hop in trace.hops)
        client_ns = trace.client.serialise_ns + trace.client.socket_ns
        assert client_ns + own + sum(trace.network_ns) == trace.total_ns
        assert 20e6 < trace.hops[1].compute_ns < trace.total_ns
        assert all(hop.computed_samples == 5 for hop in trace.hops)
        assert all(-1e6 < network < trace.total_ns for network in trace.network_ns)


def test_a_waterfall_has_every_activity_at_its_place() -> None:
    with serve([nn.Identity(), nn.Identity()], FLOATS) as (address, _), Client(address, "toy") as client:
        pending = client.submit(floats(), trace=True)
        pending.result()
        trace = pending.trace
    assert trace is not None
    shown = activities(trace)
    assert shown[0].begin_ns == 0
    assert shown[-1].end_ns == trace.total_ns
    for before, after in itertools.pairwise(shown):
        assert before.end_ns == after.begin_ns
    lines = waterfall(trace, 72)
    assert all(len(line) <= 72 for line in lines)
    assert len(lines) == len(shown) + 1
    assert [line for line in lines if line.startswith("nsf2 on n2")]
    assert "compute" in lines[-1]


def test_traces_are_told_in_the_middle_of_others() -> None:
    with serving(Stages(2)) as (address, _), Client(address, "toy") as client:
        pending = [client.submit(floats(), trace=number % 2 == 0) for number in range(10)]
        for one in pending:
            one.result()
        assert [one.trace is not None for one in pending] == [True, False] * 5


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
