"""Members of a chain with the NSF loop of a job: its handshake, frames, threads and buffers; the stages do nothing.

An NSF is `NsfLoop` itself with an identity stage, in eval mode. Source and sink are loops over the same `Link` that
send and answer instead of training. They know their fabric only as what makes the sockets.
"""

from __future__ import annotations

import queue
import threading
import zlib
from collections import deque

import torch
from torch import nn

from msl.bench.fabric.order import ANSWER_S, NUMBER, SILENCE_S, Ledger, Order, Tally, number_of, random_messages
from msl.bench.window import Passed, for_a_while
from msl.errors import MslError, NetworkError, ProtocolError
from msl.net.connection import Connection, Frame
from msl.net.fabric import Endpoint, Fabric, endpoint_of
from msl.net.frame import Header, Kind, Role, TensorSpec
from msl.net.handshake import Doorkeeper
from msl.net.hop import HopPlan, open_relay, open_source
from msl.pipeline.exchange import append_metric, leases_of, pass_on
from msl.pipeline.link import Inbox, Link, Side
from msl.pipeline.nsf import NsfLoop
from msl.pipeline.runtime import set_threads
from msl.pipeline.stage import Stage
from msl.pipeline.wire import describe_all

_MICRO_BATCHES = 2**32
"""Numbers that a frame's header has room for."""


class FramedSource:
    """The source: sends FORWARD frames with one tensor, and checks each RESULT.

    Args:
        fabric: makes the socket to the first NSF.
        plan: of this hop.
    """

    def __init__(self, fabric: Fabric, plan: HopPlan) -> None:
        connection, _ = open_source(fabric, plan)
        self._inbox: Inbox = Inbox()
        self._link = _start(connection, "next", self._inbox, plan)
        self._sent = Ledger()

    @property
    def tally(self) -> Tally:
        """What was sent so far."""
        return self._sent.tally

    def measure(self, order: Order) -> Passed:
        """Send messages for a while.

        Raises:
            MslError: an answer was not as it should be, or did not come.
        """
        self._sent.whole = order.whole
        messages = random_messages(order)
        tensors = [torch.frombuffer(message, dtype=torch.float32) for message in messages]
        waiting: deque[int] = deque()

        def send() -> None:
            number = self._sent.tally.messages
            place = number % order.in_flight
            NUMBER.pack_into(messages[place], order.num_bytes - NUMBER.size, number)
            self._sent.note(memoryview(messages[place]))
            specs, payloads = describe_all([tensors[place]])
            waiting.append(number)
            self._link.send(Header(Kind.FORWARD, micro_batch=number % _MICRO_BATCHES), specs, payloads)

        def await_answer() -> None:
            frame = _take(self._inbox, ANSWER_S)
            number = waiting.popleft()
            check_answer(frame.payloads[-1], messages[number % order.in_flight], number, order)
            frame.release()

        return for_a_while(order.seconds, order.in_flight, send, await_answer)


class FramedNsf:
    """An NSF: the loop of a job with a stage that hands on what it is given.

    Args:
        fabric: makes its sockets.
        plan: of this hop.
    """

    def __init__(self, fabric: Fabric, plan: HopPlan) -> None:
        self._plan = plan
        self._door, self.endpoint = _listen(fabric, plan)

    def open(self, fabric: Fabric) -> None:
        """Wait for the previous hop in the background, and relay from then on."""
        threading.Thread(target=self._run, args=(fabric,), name="msl-compute", daemon=True).start()

    def _run(self, fabric: Fabric) -> None:
        set_threads(1)
        try:
            previous, following = open_relay(fabric, self._plan, self._door)
        except MslError:
            return  # both neighbours have been told
        assert following is not None
        inbox: Inbox = Inbox()
        links = _start(previous, "previous", inbox, self._plan), _start(following, "next", inbox, self._plan)
        loop = NsfLoop(Stage(nn.Identity()), self._plan.name, self._plan.host, inbox, *links)
        try:
            loop.run()
        except Exception as error:
            loop.fail(error)


class FramedSink:
    """The sink: answers each FORWARD with a RESULT, which carries the message's number or the message itself.

    Args:
        fabric: makes its socket.
        plan: of this hop.
    """

    def __init__(self, fabric: Fabric, plan: HopPlan) -> None:
        self._plan = plan
        self._received = Ledger()
        self._echo = False
        self._door, self.endpoint = _listen(fabric, plan)

    @property
    def tally(self) -> Tally:
        """What was received so far."""
        return self._received.tally

    def prepare(self, order: Order) -> None:
        """What the next messages will be; called while none is under way."""
        self._received.whole, self._echo = order.whole, order.echo

    def open(self, fabric: Fabric) -> None:
        """Wait for the previous hop in the background, and answer from then on."""
        threading.Thread(target=self._run, args=(fabric,), name="msl-compute", daemon=True).start()

    def _run(self, fabric: Fabric) -> None:
        set_threads(1)
        try:
            connection, _ = open_relay(fabric, self._plan, self._door)
        except MslError:
            return  # the previous hop has been told
        inbox: Inbox = Inbox()
        link = _start(connection, "previous", inbox, self._plan)
        while True:
            try:
                frame = _take(inbox)
            except MslError:
                link.close()  # the chain is gone; the source, which misses its answers, tells it
                return
            self._received.note(frame.payloads[0])
            specs: list[TensorSpec] = []
            payloads: list[memoryview] = []
            if self._echo:
                pass_on(frame, Role.SMASHED, specs, payloads)
            else:
                append_metric(torch.tensor([number_of(frame.payloads[0])]), specs, payloads)
            link.send(Header(Kind.RESULT, micro_batch=frame.header.micro_batch), specs, payloads, leases_of(frame))


def check_answer(answer: memoryview, message: bytearray, number: int, order: Order) -> None:
    """Check that an answer is that to this message.

    Raises:
        ProtocolError: it is not.
    """
    if number_of(answer) != number:
        raise ProtocolError(f"message {number} was answered with {number_of(answer)}")
    if order.echo and len(answer) != len(message):
        raise ProtocolError(f"of message {number}, {len(answer)} of {len(message)} bytes came back")
    if order.echo and order.whole and zlib.crc32(answer) != zlib.crc32(message):
        raise ProtocolError(f"message {number} came back with other bytes")


def _listen(fabric: Fabric, plan: HopPlan) -> tuple[Doorkeeper, Endpoint]:
    listener = fabric.listen()
    return Doorkeeper(listener, plan.hello, "the previous hop", plan.max_body), endpoint_of(listener)


def _start(connection: Connection, side: Side, inbox: Inbox, plan: HopPlan) -> Link:
    link = Link(connection, side, inbox, plan.hello.in_flight, SILENCE_S)
    link.start()
    return link


def _take(inbox: Inbox, timeout_s: float | None = None) -> Frame:
    try:
        what = inbox.get(timeout=timeout_s).what
    except queue.Empty:
        raise NetworkError(f"no answer within {timeout_s:g} s") from None
    if isinstance(what, MslError):
        raise what
    if what.kind is Kind.ERROR:
        raise NetworkError(f"a hop failed: {what.document.get('message')}")
    return what
