"""What a stage counts while it runs. One thread writes each value; others read copies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

_KEPT_STEPS = 10_000
"""Step records that wait to be read; older ones are dropped, so that an unread stage does not grow."""

Activity = Literal["forward", "backward", "wait"]


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step of one stage, in milliseconds."""

    step: int
    forward_ms: float
    backward_ms: float
    wait_ms: float
    """The compute thread had nothing to do but wait for a frame."""
    send_ms: float
    """The sender threads were in `send`; it overlaps with computing."""
    refused: int
    """Connections refused so far."""
    hops: dict[str, tuple[int, int, int, int]]
    """Per link: bytes in, frames in, bytes out, frames out so far."""
    learning_rate: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    samples: int = 0
    wall_ms: float = 0.0
    """Source: from the first micro-batch's forward pass to the end of the optimizer step."""


@dataclass
class Counters:
    """Times since the last step, and the records of the steps."""

    times_ms: dict[str, float] = field(default_factory=lambda: {"forward": 0.0, "backward": 0.0, "wait": 0.0})
    records: deque[StepRecord] = field(default_factory=lambda: deque(maxlen=_KEPT_STEPS))
    step: int = 0
    micro_batch: int = 0
    steps_done: int = 0
    """Number of the first optimizer step that is still to be done."""

    @contextmanager
    def during(self, activity: Activity) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times_ms[activity] += (time.perf_counter() - start) * 1e3

    def take_times(self) -> tuple[float, float, float]:
        """Forward, backward and wait milliseconds since the last call."""
        taken = self.times_ms["forward"], self.times_ms["backward"], self.times_ms["wait"]
        for name in self.times_ms:
            self.times_ms[name] = 0.0
        return taken

    def drain(self) -> list[StepRecord]:
        """The records that have not been read yet."""
        drained = []
        while self.records:
            drained.append(self.records.popleft())
        return drained
