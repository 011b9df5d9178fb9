"""The way `link`: one hop of a chain as a job has it, with the job's own handshake, frames, threads and buffers."""

from __future__ import annotations

import struct
import threading

import torch

from msl.errors import MslError, ProtocolError
from msl.net.connection import Connection, Frame
from msl.net.fabric import DirectFabric, Endpoint, endpoint_of
from msl.net.frame import Header, Kind, Role, TensorSpec
from msl.net.handshake import Doorkeeper, Hello
from msl.net.hop import HopPlan, open_relay, open_source
from msl.pipeline.exchange import append_metric, leases_of, present
from msl.pipeline.link import Inbox, Link, Side
from msl.pipeline.wire import describe_all, tensors_in

LAST = struct.Struct("<f")
"""The last element of a payload."""
_CONNECT_S = 20.0
_SILENCE_S = 20.0


class HopSender:
    """The hop's sending end."""

    def __init__(self, address: str, receiver: Endpoint, job: str, in_flight: int, max_body: int) -> None:
        fabric = DirectFabric(address, receiver, _CONNECT_S)
        connection, _ = open_source(fabric, _plan(0, job, in_flight, max_body))
        self._inbox: Inbox = Inbox()
        self._link = _start(connection, "next", self._inbox, in_flight)

    def send(self, number: int, tensor: torch.Tensor) -> None:
        """Queue a FORWARD frame with one tensor."""
        specs, payloads = describe_all([tensor])
        self._link.send(Header(Kind.FORWARD, micro_batch=number), specs, payloads)

    def await_answer(self) -> None:
        """Wait for a RESULT frame."""
        frame = _take(self._inbox)
        if frame.kind is not Kind.RESULT:
            raise ProtocolError(f"a {frame.kind.name} frame came back where RESULT was due")
        frame.release()


class HopReceiver:
    """The hop's receiving end: a thread that answers each FORWARD frame with a RESULT frame, as a sink does."""

    def __init__(self, address: str, job: str, in_flight: int, max_body: int) -> None:
        listener = DirectFabric(address).listen()
        self.endpoint = endpoint_of(listener)
        self.last = 0.0
        """Last element of the last tensor."""
        self.received = 0
        self._address = address
        self._in_flight = in_flight
        self._plan = _plan(1, job, in_flight, max_body)
        self._door = Doorkeeper(listener, self._plan.hello, "the sender", max_body)
        threading.Thread(target=self._run, name="msl-compute", daemon=True).start()

    def _run(self) -> None:
        connection, _ = open_relay(DirectFabric(self._address), self._plan, self._door)
        inbox: Inbox = Inbox()
        link = _start(connection, "previous", inbox, self._in_flight)
        metric = torch.zeros(3, dtype=torch.float64)
        while True:
            try:
                frame = _take(inbox)
            except MslError:
                link.close()  # the sender is gone; whoever misses the answers tells it
                return
            present(tensors_in(frame, Role.SMASHED), frame.header)
            (self.last,) = LAST.unpack_from(frame.payloads[0], len(frame.payloads[0]) - LAST.size)
            self.received += 1
            specs: list[TensorSpec] = []
            payloads: list[memoryview] = []
            append_metric(metric, specs, payloads)
            link.send(Header(Kind.RESULT, micro_batch=frame.header.micro_batch), specs, payloads, leases_of(frame))


def _plan(hop: int, job: str, in_flight: int, max_body: int) -> HopPlan:
    hello = Hello(job, hop, "bench", in_flight)
    following = "the receiver" if hop == 0 else None
    return HopPlan(hello, f"end{hop}", f"end{hop}", following, max_body, _CONNECT_S, _SILENCE_S)


def _start(connection: Connection, side: Side, inbox: Inbox, in_flight: int) -> Link:
    link = Link(connection, side, inbox, in_flight, _SILENCE_S)
    link.start()
    return link


def _take(inbox: Inbox) -> Frame:
    what = inbox.get().what
    if isinstance(what, MslError):
        raise what
    return what
