"""What a loop has put off of its stage's backward passes, with the receive buffers needed until it is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from msl.net.buffers import Lease
from msl.pipeline.counters import Counters
from msl.pipeline.stage import Stage

_MOST = 3
"""Backward passes that may be put off; each keeps a micro-batch's activations alive."""


class Owed:
    """Backward passes whose weights' gradients are still to be computed, oldest first.

    Args:
        stage: whose passes.
        counters: where their time is counted.
    """

    def __init__(self, stage: Stage, counters: Counters) -> None:
        self._stage = stage
        self._counters = counters
        self._held: deque[list[Lease]] = deque()

    def hold(self, leases: Sequence[Lease]) -> None:
        """Keep the memory of the backward pass just done, if it has left anything; call it while that is leased."""
        if self._stage.owed > len(self._held):
            self._held.append([lease.share() for lease in leases])

    def limit(self) -> None:
        """Do what has been put off for long enough."""
        while len(self._held) > _MOST:
            self.complete_one()

    def complete_one(self) -> bool:
        """Complete the oldest pass; False if none is left."""
        if not self._held:
            return False
        with self._counters.during("backward"):
            self._stage.complete()
        for lease in self._held.popleft():
            lease.release()
        return True

    def complete(self) -> None:
        """Complete all."""
        while self.complete_one():
            pass
