"""One neighbour of a stage: its connection, with a thread that receives and a thread that sends."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from msl.errors import MslError, NetworkError, ProtocolError
from msl.net.buffers import Lease
from msl.net.connection import Connection, Frame
from msl.net.frame import Header, Kind, TensorSpec

Side = Literal["previous", "next"]

_PINGS_PER_SILENCE = 4
"""How many pings a live peer sends in the time after which silence counts as death."""
_CONTROL_FRAMES = 8
"""Frames that may be queued besides those of the micro-batches in flight."""

_LAST_WORDS_S = 0.5
"""Time for the receiver to read a broken peer's ERROR after sending to it has failed."""


class Arrival(NamedTuple):
    """What a link puts into its stage's inbox: a frame, or the error that ended it."""

    side: Side
    what: Frame | MslError


Inbox = queue.SimpleQueue[Arrival]


@dataclass(slots=True)
class _Outgoing:
    header: Header
    specs: Sequence[TensorSpec] = ()
    payloads: Sequence[memoryview] = ()
    document: Mapping[str, Any] | None = None
    leases: Sequence[Lease] = ()


class Link:
    """Sends and receives frames of one neighbour in the background.

    Pings keep a link alive that has nothing to say, so that silence means that the peer is dead.

    Args:
        connection: opened by a handshake; owned from here on.
        side: which neighbour it is.
        inbox: where arrivals are put.
        in_flight: bound on the micro-batches under way, and so on both queues.
        silence_s: silence after which the peer counts as dead.
    """

    def __init__(self, connection: Connection, side: Side, inbox: Inbox, in_flight: int, silence_s: float) -> None:
        self.connection = connection
        self.side: Side = side
        self.send_ms = 0.0
        self._inbox = inbox
        self._in_flight = in_flight
        self._ping_s = silence_s / _PINGS_PER_SILENCE
        self._outbox: queue.SimpleQueue[_Outgoing | None] = queue.SimpleQueue()
        self._open = 0
        """Requests (FORWARD, EPOCH, END) under way on this hop whose answer has not come yet."""
        self._lock = threading.Lock()
        connection.set_silence(silence_s)
        self._threads = [
            threading.Thread(target=self._receive, name=f"msl-receive-{side}", daemon=True),
            threading.Thread(target=self._send, name=f"msl-send-{side}", daemon=True),
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def send(
        self,
        header: Header,
        specs: Sequence[TensorSpec] = (),
        payloads: Sequence[memoryview] = (),
        leases: Sequence[Lease] = (),
    ) -> None:
        """Queue a frame of tensors; `leases` are released once it is sent."""
        self._put(_Outgoing(header, specs, payloads, None, leases))

    def send_document(self, header: Header, document: Mapping[str, Any] | None = None) -> None:
        """Queue a control frame."""
        self._put(_Outgoing(header, document=document))

    def close(self, flush_s: float = 0.0) -> None:
        """Send what is queued within `flush_s`, then close the connection and end the threads."""
        self._outbox.put(None)
        receiver, sender = self._threads
        if flush_s and sender.is_alive():
            sender.join(flush_s)
        self.connection.close()
        for thread in (receiver, sender):
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout=5.0)

    def _put(self, outgoing: _Outgoing) -> None:
        # The protocol itself bounds the queue: no more micro-batches than in_flight are ever under way. A
        # longer queue is a bug or a peer that does not read, and must not become memory growth.
        if self._outbox.qsize() > self._in_flight + _CONTROL_FRAMES:
            raise ProtocolError(f"more frames queued for {self.connection.peer} than are allowed in flight")
        if outgoing.header.kind is not Kind.ERROR:
            with self._lock:
                self._open += -1 if self.side == "previous" else 1
        self._outbox.put(outgoing)

    def _receive(self) -> None:
        try:
            while True:
                frame = self.connection.receive()
                if frame.kind is Kind.PING:
                    continue
                if frame.kind is not Kind.ERROR:
                    self._admit(frame)
                self._inbox.put(Arrival(self.side, frame))
                if frame.kind is Kind.ERROR:
                    return
        except MslError as error:
            self._inbox.put(Arrival(self.side, error))

    def _admit(self, frame: Frame) -> None:
        """Count a frame before it is queued, so that a peer cannot fill the inbox faster than it is emptied.

        The previous hop sends requests, the next hop answers; that a frame's kind fits is for the loop to check.
        """
        with self._lock:
            self._open += 1 if self.side == "previous" else -1
            too_many, unasked = self._open > self._in_flight, self._open < 0
        if too_many:
            raise ProtocolError(f"{self.connection.peer} has more than {self._in_flight} micro-batches in flight")
        if unasked:
            raise ProtocolError(f"{self.connection.peer} sent a {frame.kind.name} frame that answers nothing")

    def _send(self) -> None:
        while True:
            try:
                outgoing = self._outbox.get(timeout=self._ping_s)
            except queue.Empty:
                outgoing = _Outgoing(Header(Kind.PING))
            if outgoing is None:
                return
            try:
                start = time.perf_counter()
                if outgoing.specs:
                    self.connection.send(outgoing.header, outgoing.specs, outgoing.payloads)
                else:
                    self.connection.send_document(outgoing.header, outgoing.document)
                self.send_ms += (time.perf_counter() - start) * 1e3
            except NetworkError as error:
                # A peer that fails sends ERROR and closes. What it said is worth more than that it no longer
                # listens: let the receiver, which is about to end, tell first.
                self._threads[0].join(timeout=_LAST_WORDS_S)
                self._inbox.put(Arrival(self.side, error))
                return
            for lease in outgoing.leases:
                lease.release()
