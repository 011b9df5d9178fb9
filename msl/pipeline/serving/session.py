"""One client of a service at one hop: its connection, the one that carries it onward, and what is under way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from msl.net.stream import Stream

if TYPE_CHECKING:
    from msl.pipeline.serving.request import Request


class State(Enum):
    """How far a session is."""

    GREETING = auto()
    """Waits for HELLO."""
    CONNECTING = auto()
    """The connection onward is being made."""
    WELCOMING = auto()
    """HELLO was sent onward; waits for WELCOME."""
    OPEN = auto()
    LEAVING = auto()
    """Was sent an ERROR; what the client still sends is thrown away, so that it can read it."""
    CLOSED = auto()


class Session:
    """A client's way through this hop.

    Args:
        previous: connection to the previous hop, which may be the client itself.
    """

    def __init__(self, previous: Stream) -> None:
        self.previous = previous
        self.following: Stream | None = None
        """Connection to the next hop; None at the sink."""
        self.state = State.GREETING
        self.since_s = time.monotonic()
        """When it came to its state; monotonic."""
        self.hello: Mapping[str, Any] = {}
        self.unanswered = 0
        """Requests that were taken in and not answered yet."""
        self.waiting: deque[Request] = deque()
        """Requests that were sent onward and not answered yet."""
        self.unread = False
        """The connection was not read to its end: there may be frames that have arrived, and that no event tells of."""
        self.ended = False
        """The client will send nothing more, and may still wait for answers."""

    def become(self, state: State) -> None:
        """Change the state."""
        self.state = state
        self.since_s = time.monotonic()

    @property
    def sending(self) -> bool:
        """Whether a peer has not taken all that it was sent."""
        return self.previous.sending or (self.following is not None and self.following.sending)

    @property
    def streams(self) -> list[Stream]:
        """The connections that there are."""
        return [self.previous] if self.following is None else [self.previous, self.following]
