"""One member of a chain: what the Ray actor of a source, an NSF or a sink does, free of Ray itself.

The driver calls, in this order: `listen` (all), `load` (all), `open` (sink first, source last), then at the
source `train_epoch` and `evaluate` as often as it likes, `state` between epochs, `end`, and `close`. Within
an epoch nothing but `status` is called: the source drives the chain in band.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from msl.actors.agreement import schema_of
from msl.actors.gate import Gate
from msl.config import Config
from msl.data import Splits
from msl.errors import MslError, NetworkError, StageError
from msl.net.connection import Connection
from msl.net.fabric import DirectFabric, Endpoint, Fabric, endpoint_of
from msl.net.handshake import Doorkeeper, Hello
from msl.net.hop import HopPlan, open_relay, open_source
from msl.pipeline.batches import Batch, evaluation_batches, training_batches
from msl.pipeline.build import build_data, build_loss, build_model, build_stage, cut_model
from msl.pipeline.counters import Counters, StepRecord
from msl.pipeline.fault import Fault
from msl.pipeline.link import Inbox, Link
from msl.pipeline.loop import StageLoop
from msl.pipeline.nsf import NsfLoop
from msl.pipeline.runtime import set_threads, threads
from msl.pipeline.sink import SinkLoop
from msl.pipeline.source import SourceLoop, Tally
from msl.pipeline.stage import Stage, StageState
from msl.plan import Member, Plan

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_S = 0.002


@dataclass(frozen=True)
class Report:
    """What a member tells when it is asked how it is."""

    name: str
    records: list[StepRecord] = field(default_factory=list)
    step: int = 0
    micro_batch: int = 0
    refused: int = 0
    fault: Fault | None = None


@dataclass(frozen=True)
class Identity:
    """Where a member really runs."""

    name: str
    pid: int
    hostname: str
    ray_node: str | None
    threads: int


class ChainMember:
    """A source, an NSF or a sink.

    Args:
        config: the job's configuration.
        plan: the job's plan.
        hop: which member of the plan this is.
        job: identifier of the run, known to its members only.
        address: address of this host at which the previous hop connects.
        make_fabric: makes the fabric from (address, next hop); the direct one by default.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        hop: int,
        job: str,
        address: str,
        make_fabric: Callable[[str, Endpoint | None], Fabric] | None = None,
    ) -> None:
        self._config = config
        self._plan = plan
        self._me: Member = plan.members[hop]
        self._address = address
        self._make_fabric = make_fabric or (lambda at, next_hop: DirectFabric(at, next_hop, config.timeouts.connect_s))
        set_threads(self._me.threads)
        # Only the source has the data; the others need not be able to load it.
        self._data: Splits | None = build_data(config) if self._me.place.role == "source" else None
        self._stage = self._build_stage()
        self._hop_plan = self._make_hop_plan(job)
        self._counters = Counters()
        self._door: Doorkeeper | None = None
        self._gate: Gate | None = None
        self._loop: StageLoop | None = None
        self._thread: threading.Thread | None = None
        self._fault: Fault | None = None
        self._finished = threading.Event()

    def identify(self, ray_node: str | None = None) -> Identity:
        """Where this member runs."""
        return Identity(self._me.place.name, os.getpid(), socket.gethostname(), ray_node, threads())

    def listen(self) -> Endpoint | None:
        """Listen for the previous hop; returns where. The source listens nowhere."""
        if self._me.place.role == "source":
            return None
        listener = self._make_fabric(self._address, None).listen()
        endpoint = endpoint_of(listener)
        previous = self._plan.members[self._me.place.hop - 1].place
        self._door = Doorkeeper(listener, self._hop_plan.hello, previous.title, self._hop_plan.max_body)
        return endpoint

    def load(self, state: StageState) -> None:
        """Take over this stage's part of the job's state."""
        if self._stage is not None:
            self._stage.load(state)

    def open(self, next_hop: Endpoint | None) -> list[dict[str, Any]]:
        """Open the chain onward.

        An NSF or the sink returns at once, waits for the previous hop in the background and then runs until the
        chain ends. The source blocks until the sink has welcomed it.

        Returns:
            At the source: the path that was opened, hop by hop. Else an empty list.
        """
        fabric = self._make_fabric(self._address, next_hop)
        if self._me.place.role != "source":
            self._thread = threading.Thread(target=self._relay, args=(fabric,), name="msl-compute", daemon=True)
            self._thread.start()
            return []
        inbox: Inbox = Inbox()
        connection, path = open_source(fabric, self._hop_plan)
        self._loop = SourceLoop(
            self._stage,
            self._me.place.name,
            self._me.place.host,
            inbox,
            self._link(connection, "next", inbox),
            self._plan.in_flight,
            self._config.timeouts.step_s,
            self._counters,
        )
        return path

    def train_epoch(self, epoch: int, first_step: int) -> Tally:
        """Source: train one epoch over the chain.

        Raises:
            StageError: the chain broke; the message says where.
        """
        batches = self._batches(epoch)
        return self._drive(lambda loop: loop.train_epoch(batches, first_step))

    def train_steps(self, epoch: int, first_step: int, count: int) -> list[float]:
        """Source: train the first steps of an epoch without ending it; their losses. Raises as `train_epoch` does."""
        batches = islice(self._batches(epoch), count)
        return self._drive(lambda loop: [loop.train_step(b, step).loss for step, b in enumerate(batches, first_step)])

    def await_step(self, step: int, timeout_s: float) -> bool:
        """Wait until this stage's optimizer has done a step, at most `timeout_s`; False if it has not."""
        deadline = time.monotonic() + timeout_s
        while self._counters.steps_done <= step and self._fault is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return self._counters.steps_done > step

    def evaluate(self, step: int) -> Tally:
        """Source: loss and accuracy on the test set; raises as `train_epoch` does."""
        assert self._data is not None
        batches = evaluation_batches(self._data.test, self._config.train.eval_batch or self._config.train.batch_size)
        return self._drive(lambda loop: loop.evaluate(batches, step))

    def serve(self, step: int) -> Endpoint:
        """Source: let clients ask the chain between its steps; returns where.

        Raises:
            NetworkError: it cannot listen there.
        """
        assert isinstance(self._loop, SourceLoop)
        self._gate = Gate(self._config, self._plan, self._address, self._loop, step)
        return self._gate.endpoint

    def end(self) -> None:
        """Source: end the chain in order; raises as `train_epoch` does."""
        if self._gate is not None:
            self._gate.close()
        self._drive(lambda loop: loop.end())
        self._finished.set()

    def state(self) -> StageState | None:
        """What this stage has learnt so far; only between epochs. None for a member without a stage."""
        return self._stage.state() if self._stage is not None else None

    def status(self) -> Report:
        """Step records since the last call, position, and fault if there is one."""
        return Report(
            self._me.place.name,
            self._counters.drain(),
            self._counters.step,
            self._counters.micro_batch,
            self._door.refused if self._door else 0,
            self._fault,
        )

    def wait(self, timeout_s: float) -> Fault | None:
        """Wait until this member's part of the chain has ended, at most `timeout_s`; returns its fault if any."""
        self._finished.wait(timeout_s)
        return self._fault

    def close(self) -> None:
        """Close everything that is still open."""
        if self._gate is not None:
            self._gate.close()
        if self._door is not None:
            self._door.close()
        if self._loop is not None:
            self._loop.close()
        if self._thread is not None:
            self._thread.join(timeout=self._config.timeouts.stop_s)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        assert self._data is not None
        train = self._config.train
        return training_batches(self._data.train, train.batch_size, train.micro_batch, self._config.seed, epoch)

    def _build_stage(self) -> Stage | None:
        index = self._me.place.stage
        if index is None:
            return None
        modules = cut_model(self._config, self._plan, build_model(self._config))
        return build_stage(self._config, modules[index], self._plan.train_samples)

    def _make_hop_plan(self, job: str) -> HopPlan:
        place = self._me.place
        following = None if place.role == "sink" else self._plan.members[place.hop + 1].place
        return HopPlan(
            Hello(job, place.hop, schema_of(self._plan), self._plan.in_flight),
            place.name,
            place.host,
            following.title if following else None,
            self._config.max_frame_mb * 2**20,
            self._config.timeouts.connect_s,
            self._config.timeouts.silence_s,
        )

    def _link(self, connection: Connection, side: Any, inbox: Inbox) -> Link:
        link = Link(connection, side, inbox, self._plan.in_flight, self._config.timeouts.silence_s)
        link.start()
        return link

    def _relay(self, fabric: Fabric) -> None:
        """The compute thread of an NSF or the sink."""
        assert self._door is not None
        set_threads(self._me.threads)
        try:
            previous, following = open_relay(fabric, self._hop_plan, self._door)
        except MslError as error:
            place = self._me.place
            self._fault = Fault(type(error).__name__, place.name, place.host, 0, 0, str(error))
            self._finished.set()
            return
        loop = self._make_loop(previous, following)
        self._loop = loop
        loop.refused = lambda: self._door.refused if self._door else 0
        try:
            loop.run()
        except Exception as error:
            self._note(loop, error)
        finally:
            # Whatever happens: pings of a loop that is gone would keep its neighbours waiting.
            loop.close()
            self._finished.set()

    def _make_loop(self, previous: Connection, following: Connection | None) -> NsfLoop | SinkLoop:
        assert self._stage is not None
        inbox: Inbox = Inbox()
        place = self._me.place
        behind = self._link(previous, "previous", inbox)
        if following is None:
            loss = build_loss(self._config)
            return SinkLoop(self._stage, loss, place.name, place.host, inbox, behind, self._counters)
        ahead = self._link(following, "next", inbox)
        return NsfLoop(self._stage, place.name, place.host, inbox, behind, ahead, self._counters)

    def _drive(self, call: Callable[[SourceLoop], T]) -> T:
        if not isinstance(self._loop, SourceLoop):
            raise NetworkError("the chain is not open")
        if self._fault is not None:
            raise StageError(str(self._fault))
        set_threads(self._me.threads)
        try:
            return call(self._loop)
        except Exception as error:
            self._note(self._loop, error)
            raise StageError(str(self._fault)) from error

    def _note(self, loop: StageLoop, error: Exception) -> None:
        """Keep the fault that ended this member, and tell the neighbours."""
        if not isinstance(error, MslError):
            log.exception("stage %s failed", self._me.place.name)
        self._fault = loop.fail(error)
        self._finished.set()
