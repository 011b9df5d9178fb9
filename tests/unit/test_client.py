"""The client against real services over loopback, and against listeners that do not keep to the protocol."""

from __future__ import annotations

import gc
import itertools
import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import msl
from msl.client import Client
from msl.errors import ConfigError
from msl.net.waterfall import activities, waterfall
from msl.plan import InputSpec
from tests.unit.pretenders import FLOATS, Calls, floats
from tests.unit.services import Stages, serve, serving

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
