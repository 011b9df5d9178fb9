"""Waits for what happens on a hop's connections, and has it answered. All calls but `poll` are made under a lock."""

from __future__ import annotations

import logging
import select
import socket

from msl.net.stream import Stream
from msl.pipeline.serving.dialogue import Dialogue
from msl.pipeline.serving.session import Session, State

log = logging.getLogger(__name__)

_ACCEPTS_A_TURN = 64


class Poller:
    """Which connections are waited for, and for what.

    Args:
        listener: where the previous hop connects.
        wake: whose being readable ends a wait.
    """

    def __init__(self, listener: socket.socket, wake: socket.socket) -> None:
        self.dialogue: Dialogue
        """Has what happens answered; set once, before anything happens."""
        self._listener = listener
        self._poll = select.epoll()
        self._watched: dict[int, tuple[Session, Stream]] = {}
        self._interest: dict[int, int] = {}
        self._fresh: set[int] = set()
        """Descriptors that are watched since the last look: what that look told of them was of others."""
        self._out_of_descriptors = False
        for sock in (listener, wake):
            self._poll.register(sock, select.EPOLLIN)

    def wait(self, timeout_s: float) -> list[tuple[int, int]]:
        """Wait until something happens, at most `timeout_s`; without the lock."""
        return self._poll.poll(timeout_s)

    def take(self, events: list[tuple[int, int]]) -> None:
        """Have answered what a wait has told."""
        self._fresh.clear()
        for descriptor, event in events:
            self._happened(descriptor, event)

    def look_around(self) -> None:
        """Find what no event tells of."""
        self.dialogue.check_deadlines()
        for session in list(self.dialogue.sessions):
            self.settle(session)
        self.feed()
        if self._out_of_descriptors:
            self._out_of_descriptors = False
            self._poll.modify(self._listener, select.EPOLLIN)

    def close(self) -> None:
        """Wait for nothing any more."""
        self._poll.close()

    def add(self, session: Session, stream: Stream) -> None:
        """Wait for what happens on a connection."""
        descriptor = stream.fileno()
        wanted = self._wanted(session, stream)
        self._poll.register(descriptor, wanted)
        self._watched[descriptor] = session, stream
        self._interest[descriptor] = wanted
        self._fresh.add(descriptor)

    def drop(self, stream: Stream) -> None:
        """Wait no longer."""
        descriptor = stream.fileno()
        if self._watched.pop(descriptor, None) is not None:
            del self._interest[descriptor]
            self._poll.unregister(descriptor)

    def _happened(self, descriptor: int, event: int) -> None:
        if descriptor == self._listener.fileno():
            self._accept()
            return
        if descriptor not in self._watched or descriptor in self._fresh:
            return  # closed by what happened before it, and perhaps given to another connection since
        session, stream = self._watched[descriptor]
        if event & select.EPOLLOUT:
            self.dialogue.writable(session, stream)
        if event & ~select.EPOLLOUT and descriptor in self._watched:
            self.dialogue.readable(session, stream, bool(event & (select.EPOLLHUP | select.EPOLLERR)))
        self.settle(session)
        self.feed()

    def feed(self) -> None:
        """Go on with those who waited for memory, as far as there is some now."""
        for session in self.dialogue.feed_starved() if self.dialogue.starved else ():
            self.settle(session)

    def settle(self, session: Session) -> None:
        """Read on where reading stopped, then wait for what can happen next on a session's connections."""
        if session.unread and self.dialogue.wants_more(session):
            self.dialogue.readable(session, session.previous)
        if session.state is State.CLOSED:
            return
        for stream in session.streams:
            wanted = self._wanted(session, stream)
            descriptor = stream.fileno()
            before = self._interest[descriptor]
            if before != wanted:
                self._interest[descriptor] = wanted
                self._poll.modify(descriptor, wanted)
                if wanted & ~before & select.EPOLLIN:
                    stream.expect()

    def _wanted(self, session: Session, stream: Stream) -> int:
        """What is to be waited for on one of a session's connections."""
        wanted = select.EPOLLOUT if stream.sending else 0
        if stream is not session.previous:
            return wanted | (select.EPOLLOUT if session.state is State.CONNECTING else select.EPOLLIN)
        if not self.dialogue.wants_more(session):
            return wanted
        # Others have their turn, then it goes on here: a connection can be written to at nearly any time.
        return wanted | select.EPOLLIN | (select.EPOLLOUT if session.unread else 0)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                # Out of descriptors, perhaps: go on with whom there is until the next tick.
                log.warning("hop %d: accept failed: %s", self.dialogue.rules.hop, error)
                self._out_of_descriptors = True
                self._poll.modify(self._listener, 0)
                self.dialogue.make_room()
                return
            self.dialogue.admit(sock, address[0])
