"""Whose request is computed next: fair turns among sessions, and requests merged within a latency budget. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from msl.pipeline.serving.request import Request
from msl.pipeline.serving.session import Session

Held = Callable[[Session], bool]
"""Whether a session has no turn for now, whatever it has waiting."""


class Turns:
    """Requests that wait to be computed.

    Each session with waiting requests has its turn; a session's own requests are taken in their order. With a budget,
    requests of the same signature are taken together: as many sessions' as wait already, and as come until the oldest
    one has waited for the budget.

    Args:
        max_wait_ms: latency budget; with 0 each request is computed by itself, at once.
        max_samples: most samples that are taken together; a larger request is taken by itself.
    """

    def __init__(self, max_wait_ms: float = 0.0, max_samples: int = 64) -> None:
        self._budget_ns = int(max_wait_ms * 1e6)
        self._max_samples = max_samples
        self._order: deque[Session] = deque()
        self._queues: dict[Session, deque[Request]] = {}
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, request: Request) -> None:
        """Let a request wait for its turn."""
        queue = self._queues.get(request.session)
        if queue is None:
            queue = self._queues[request.session] = deque()
            self._order.append(request.session)
        queue.append(request)
        self._waiting += 1

    def remove(self, session: Session) -> list[Request]:
        """Forget what a session has waiting; returns it."""
        queue = self._queues.pop(session, None)
        if queue is None:
            return []
        self._order.remove(session)
        self._waiting -= len(queue)
        return list(queue)

    def due_in_ns(self, now_ns: int, held: Held | None = None) -> int | None:
        """How long until something is to be taken: 0 if now, None if nothing waits but for sessions that are held."""
        order = self._having_turns(held)
        if not order:
            return None
        if not self._budget_ns:
            return 0
        if self._mergeable(order) >= self._max_samples:
            return 0
        oldest = min(self._queues[session][0].received_ns for session in order)
        return max(0, oldest + self._budget_ns - now_ns)

    def take(self, held: Held | None = None) -> list[Request]:
        """The next requests to be computed together, at least one; call it when something is due."""
        first = self._pop(self._having_turns(held)[0])
        taken = [first]
        if not self._budget_ns:
            return taken
        signature, samples = first.signature, first.samples
        # One request of each session in turn, round and round, until there is no more that fits.
        found = True
        while found:
            found = False
            for session in list(self._having_turns(held)):
                candidate = self._queues[session][0]
                if candidate.signature == signature and samples + candidate.samples <= self._max_samples:
                    taken.append(self._pop(session))
                    samples += candidate.samples
                    found = True
        return taken

    def _having_turns(self, held: Held | None) -> Sequence[Session]:
        return self._order if held is None else [session for session in self._order if not held(session)]

    def _mergeable(self, order: Sequence[Session]) -> int:
        """Samples that wait and could be computed together with the request that comes first."""
        signature = self._queues[order[0]][0].signature
        return sum(
            request.samples for session in order for request in self._queues[session] if request.signature == signature
        )

    def _pop(self, session: Session) -> Request:
        queue = self._queues[session]
        request = queue.popleft()
        self._waiting -= 1
        self._order.remove(session)
        if queue:
            self._order.append(session)
        else:
            del self._queues[session]
        return request
