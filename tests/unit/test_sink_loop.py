"""A sink's loop behind a hand-made neighbour: what it cannot train on ends it, and the fault says why."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import nn

from msl.errors import StageError
from msl.net.frame import Header, Kind, TensorSpec
from msl.pipeline.link import Inbox
from msl.pipeline.sink import SinkLoop
from msl.pipeline.stage import Stage
from msl.pipeline.wire import ABSENT
from tests.chains import make_config, open_chain
from tests.unit.neighbours import IN_FLIGHT, LAST, ONE, PATIENCE_S, TARGET, Build, Rig, link, make_stage


@pytest.fixture
def sink() -> Iterator[Build]:
    """Makes a sink's loop that runs."""
    with contextlib.ExitStack() as stack:

        def build(stage: Stage | None = None) -> Rig:
            inbox: Inbox = Inbox()
            previous, behind = link(stack, "previous", inbox, "nsf1 on host n1", PATIENCE_S, IN_FLIGHT)
            loop = SinkLoop(stage or make_stage(3), nn.CrossEntropyLoss(), "sink", "n2", inbox, behind)
            rig = Rig(loop, previous, previous)
            rig.start()
            stack.callback(rig.join)
            stack.callback(rig.loop.close)
            return rig

        yield build


@pytest.mark.parametrize(
    ("specs", "samples", "wording"),
    [
        (ONE, 1, "a FORWARD in train mode needs one target and the number of samples of its step"),
        ([*ONE, TARGET, TARGET], 1, "a FORWARD in train mode needs one target and the number of samples of its step"),
        ([*ONE, TARGET], 0, "a FORWARD in train mode needs one target and the number of samples of its step"),
        ([ABSENT, TARGET], 1, "an absent tensor in a FORWARD frame"),
    ],
    ids=["no target", "two targets", "no samples", "an absent input"],
)
def test_a_forward_that_the_sink_cannot_train_on_is_refused(
    sink: Build, specs: Sequence[TensorSpec], samples: int, wording: str
) -> None:
    rig = sink()
    payloads = [memoryview(bytes(spec.num_bytes)) for spec in specs]
    rig.previous.connection.send(Header(Kind.FORWARD, LAST, 0, 0, samples), specs, payloads)
    fault = rig.ended_with()
    assert (fault.kind, fault.stage, fault.message) == ("ProtocolError", "sink", wording)


def test_a_loss_that_is_not_finite_is_told_with_its_stage_and_step(sink: Build) -> None:
    rig = sink()
    infinite = memoryview(torch.full((1, 4), math.inf).numpy()).cast("B")
    header = Header(Kind.FORWARD, LAST, 6, 1, 1)
    rig.previous.connection.send(header, [*ONE, TARGET], [infinite, memoryview(bytes(8))])
    fault = rig.ended_with()
    assert str(fault) == (
        "host n2, stage sink, step 6, micro-batch 1: the loss is nan; the training has diverged: lower the learning"
        " rate or check the data"
    )


def test_a_chain_that_diverges_stops_and_every_member_knows_why() -> None:
    config = make_config(
        model={"factory": "tests.unit.toys:Awkward", "args": {"dropout": 0.0}},
        data={
            "factory": "msl.data.synthetic:random_images",
            "args": {"num_train": 22, "num_test": 4, "shape": [1, 8, 8], "num_classes": 3, "seed": 3},
        },
        split={"cut": ["mix", "head"]},
        train={
            "epochs": 1,
            "batch_size": 8,
            "micro_batch": 4,
            "optimizer": {"factory": "torch.optim:SGD", "args": {"lr": 1e30}},
        },
    )
    with open_chain(config) as members:
        with pytest.raises(StageError) as caught:
            members[0].train_epoch(0, 0)
        assert "stage sink, step 1, micro-batch 0: the loss is nan; the training has diverged" in str(caught.value)
        faults = [member.wait(PATIENCE_S) for member in members]
        assert [str(fault) for fault in faults] == [str(caught.value)] * 3
        with pytest.raises(StageError, match="the training has diverged"):  # and it stays ended
            members[0].evaluate(1)
