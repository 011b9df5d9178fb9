"""A source's loop before a hand-made neighbour: it keeps to the window, and refuses what is no answer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from msl.errors import NetworkError, ProtocolError
from msl.net.frame import DType, Header, Kind, Role, TensorSpec
from msl.pipeline.batches import Batch, MicroBatch
from msl.pipeline.link import Inbox
from msl.pipeline.source import SourceLoop
from tests.unit.neighbours import IN_FLIGHT, ONE, PATIENCE_S, Neighbour, link


@pytest.fixture
def source() -> Iterator[Callable[..., tuple[SourceLoop, Neighbour]]]:
    """Makes a source without a stage, and the hop behind it."""
    with contextlib.ExitStack() as stack:

        def build(step_s: float = PATIENCE_S) -> tuple[SourceLoop, Neighbour]:
            inbox: Inbox = Inbox()
            neighbour, ahead = link(stack, "next", inbox, "nsf1 on host n1", PATIENCE_S, IN_FLIGHT)
            loop = SourceLoop(None, "source", "n0", inbox, ahead, IN_FLIGHT, step_s)
            stack.callback(loop.close)
            return loop, neighbour

        yield build


def batch(micro_batches: int) -> Batch:
    parts = tuple(MicroBatch((torch.zeros(1, 4),), torch.zeros(1, dtype=torch.long)) for _ in range(micro_batches))
    return Batch(micro_batches, parts)


@contextlib.contextmanager
def serving(serve: Callable[[], None]) -> Iterator[None]:
    """The hop behind the source, in a thread that must end."""
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    thread.join(timeout=PATIENCE_S)
    assert not thread.is_alive()


def test_the_source_keeps_to_the_window(source: Any) -> None:
    loop, hop = source()

    def serve() -> None:
        taken = 0
        for answered in range(5):
            while taken < min(5, answered + IN_FLIGHT):
                assert hop.take().header.micro_batch == taken
                taken += 1
            hop.connection.set_silence(0.1)
            with pytest.raises(NetworkError, match="nothing received"):
                hop.take()
            hop.connection.set_silence(PATIENCE_S)
            hop.answer(micro_batch=answered)

    with serving(serve):
        tally = loop.train_step(batch(5), 0)
    assert (tally.samples, tally.loss, tally.accuracy) == (5, 0.5, 1.0)


@pytest.mark.parametrize("metrics", [0, 2])
def test_an_answer_without_exactly_one_metric_is_refused(source: Any, metrics: int) -> None:
    loop, hop = source()
    specs = [*ONE, *[TensorSpec(DType.FLOAT64, (3,), Role.METRIC)] * metrics]

    def serve() -> None:
        assert hop.take().kind is Kind.FORWARD
        hop.connection.send(Header(Kind.BACKWARD), specs, [memoryview(bytes(spec.num_bytes)) for spec in specs])

    with serving(serve), pytest.raises(ProtocolError, match=r"^an answer without its METRIC tensor$"):
        loop.train_step(batch(1), 0)


def test_a_chain_that_pings_but_does_not_answer_is_told_as_stuck(source: Any) -> None:
    loop, _ = source(step_s=0.3)
    with pytest.raises(NetworkError) as caught:
        loop.train_step(batch(1), 0)
    assert str(caught.value) == (
        "no answer from the chain behind nsf1 on host n1 within 0.3 s (timeouts.step_s), though it sends pings"
    )


def test_an_end_of_epoch_that_is_answered_otherwise_is_refused(source: Any) -> None:
    loop, hop = source()

    def serve() -> None:
        assert hop.take().kind is Kind.EPOCH
        hop.control(Kind.END)

    with serving(serve), pytest.raises(ProtocolError, match=r"^a END frame came back where EPOCH was due$"):
        loop.train_epoch([], 0)
