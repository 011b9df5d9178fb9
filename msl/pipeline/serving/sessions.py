"""The sessions of one hop: how they begin and end, what memory they may have, and how long they may wait.

What is said in them is told in `msl.pipeline.serving.dialogue`. All calls are made under the service's lock.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from msl.errors import MslError, NetworkError, ProtocolError, StageError
from msl.net.buffers import BufferPool, Lease
from msl.net.frame import MAX_DOCUMENT, Header, Kind, TensorSpec
from msl.net.stream import Backlog, Stream
from msl.pipeline.serving.counters import ServiceCounters
from msl.pipeline.serving.deadlines import overdue
from msl.pipeline.serving.rules import HopRules
from msl.pipeline.serving.session import Session, State
from msl.pipeline.serving.turns import Turns

log = logging.getLogger(__name__)

LEAVING_S = 2.0
"""Time for a client to read the ERROR that ends its session, during which what it still sends is thrown away."""
_KEPT_BYTES = 64 * 2**20
"""Receive buffers that stay for later use."""


class Watch(Protocol):
    """Waits for what happens on connections."""

    def add(self, session: Session, stream: Stream) -> None:
        """A connection is new."""
        ...

    def drop(self, stream: Stream) -> None:
        """A connection is about to be closed."""
        ...


class Sessions:
    """The sessions of one hop.

    Args:
        rules: what the hop knows of itself and its neighbours.
        turns: where requests wait to be computed.
        watch: told which connections there are.
    """

    def __init__(self, rules: HopRules, turns: Turns, watch: Watch) -> None:
        self.rules = rules
        self.step = rules.step
        """Optimizer steps that the weights have behind them."""
        self.counters = ServiceCounters()
        self.sessions: dict[Session, None] = {}
        """All that are not closed, in the order of their arrival."""
        self.requests = BufferPool(_KEPT_BYTES)
        self.answers = BufferPool(_KEPT_BYTES)
        self.backlog = Backlog()
        self.starved: OrderedDict[Session, None] = OrderedDict()
        """Sessions whose next request waits for a buffer, in order."""
        self._first_in_line = False
        self._turns = turns
        self._watch = watch

    def admit(self, sock: socket.socket, address: str) -> None:
        """A new connection."""
        self.counters.accepted += 1
        if len(self.sessions) >= self.rules.max_sessions:
            self.make_room()
        try:
            previous = Stream(sock, f"the peer at {address}", self.lend, MAX_DOCUMENT, self.backlog)
            previous.check = _check_greeting
            session = Session(previous)
            self._watch.add(session, previous)
        except OSError as error:
            log.warning("hop %d: a connection of %s failed: %s", self.rules.hop, address, error)
            self.counters.refused["gone"] += 1
            sock.close()
            return
        self.sessions[session] = None
        if len(self.sessions) > self.rules.max_sessions:
            self.refuse(session, NetworkError(f"the service has its most connections ({self.rules.max_sessions})"))

    def make_room(self) -> None:
        """Close who has been silent longest, or is leaving: a crowd of strangers must not keep clients out."""
        for session in self.sessions:
            if session.state in (State.GREETING, State.LEAVING):
                self.counters.refused["silent"] += 1
                self.close(session)
                return

    def lend(self, num_bytes: int) -> Lease | None:
        """A buffer for a request, if there is room for it and nobody else was told to wait before."""
        lent = self.requests.lent_bytes
        must_wait = bool(self.starved) and not self._first_in_line
        if must_wait or (lent and lent + num_bytes > self.rules.memory_bytes):
            return None
        self._first_in_line = False
        return self.requests.lease(num_bytes)

    def wants_more(self, session: Session) -> bool:
        """Whether the session's client is to be read from. An answer that it does not take fills its window too."""
        if session.state is State.OPEN:
            under_way = session.unanswered + session.previous.unsent_frames
            return not session.ended and under_way < self.rules.in_flight and session not in self.starved
        return session.state in (State.GREETING, State.LEAVING) and not session.ended

    def check_deadlines(self) -> None:
        """End the sessions that have waited too long."""
        now = time.monotonic()
        for session in list(self.sessions):
            if reason := overdue(session, now, self.rules, bool(self.starved), self.wants_more(session)):
                self.refuse(session, NetworkError(reason))
            elif session.state is State.LEAVING and now - session.since_s > LEAVING_S:
                self.close(session)

    def refuse(self, session: Session, error: MslError) -> None:
        """End a session with an error, which its client is told if it can be."""
        document = {
            "kind": type(error).__name__,
            "stage": self.rules.name,
            "host": self.rules.host,
            "step": self.step,
            "micro_batch": -1,
            "message": str(error)[:1000],
        }
        self._leave(session, document)

    def close(self, session: Session) -> None:
        """End a session at once."""
        if session.state is State.CLOSED:
            return
        session.become(State.CLOSED)
        self.sessions.pop(session, None)
        self._abandon(session)
        for stream in session.streams:
            self._end(stream)

    def _leave(self, session: Session, document: dict[str, object]) -> None:
        if session.state in (State.LEAVING, State.CLOSED):
            return
        self.counters.refused[str(document.get("kind"))] += 1
        log.info("hop %d: a session of %s ends: %s", self.rules.hop, session.previous.peer, document.get("message"))
        self._abandon(session)
        session.become(State.LEAVING)
        if session.following is not None:
            self._end(session.following)
            session.following = None
        try:
            if session.previous.send_document(Header(Kind.ERROR), document):
                self._all_sent(session)
        except NetworkError:
            self.close(session)

    def _abandon(self, session: Session) -> None:
        """Forget what is under way."""
        self.starved.pop(session, None)
        for request in self._turns.remove(session):
            request.frame.release()
        for request in session.waiting:
            request.frame.release()
        session.waiting.clear()

    def _end(self, stream: Stream) -> None:
        self._watch.drop(stream)
        stream.close()

    def _guarded(self, session: Session, stream: Stream, call: Callable[[Session], None]) -> None:
        """Do something with one connection of a session; what goes wrong ends this session and no other."""
        if session.state is State.CLOSED:
            return
        try:
            call(session)
        except MslError as error:
            if stream is session.previous and isinstance(error, NetworkError) and not isinstance(error, ProtocolError):
                self._gone(session)
            else:
                self.refuse(session, error)
        except Exception as error:
            log.exception("hop %d: a session failed", self.rules.hop)
            self.refuse(session, StageError(f"{type(error).__name__}: {error}"))

    def _gone(self, session: Session) -> None:
        """The client is gone: there is nobody to be told."""
        if session.state not in (State.LEAVING, State.CLOSED):
            self.counters.refused["gone"] += 1
        self.close(session)

    def _lost(self, session: Session) -> None:
        raise NetworkError(f"{session.previous.peer} closed the connection")

    def _all_sent(self, session: Session) -> None:
        if session.state is not State.LEAVING:
            self._end_if_done(session)
        elif session.ended:
            self.close(session)
        else:
            session.previous.finish()

    def _end_if_done(self, session: Session) -> None:
        if session.ended and not session.unanswered and not session.previous.sending:
            self.close(session)


def _check_greeting(header: Header, _specs: tuple[TensorSpec, ...]) -> None:
    raise ProtocolError(f"a connection begins with HELLO, not {header.kind.name}")
