"""One request at one hop: its frame, and the times of what happens to it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msl.net.connection import Frame
from msl.net.frame import DType, Flag, Role
from msl.net.trace import HopTimes

if TYPE_CHECKING:
    from msl.pipeline.serving.session import Session

Signature = tuple[tuple[DType, tuple[int, ...]], ...]
"""Element type and shape of each input, without the batch dimension: requests that share it can be computed at once."""


@dataclass(slots=True, eq=False)
class Request:
    """A FORWARD that a hop has taken in and not answered yet. Times are of this host's monotonic clock, in ns."""

    session: Session
    frame: Frame
    samples: int
    header_ns: int
    """Its header was read."""
    received_ns: int = field(default_factory=time.monotonic_ns)
    """All of it had arrived."""
    taken_ns: int = 0
    """Its computation began."""
    computed_ns: int = 0
    encoded_ns: int = 0
    """What goes on was ready to be sent."""
    sent_ns: int = 0
    """What goes on was given to the socket, as far as the socket took it."""
    computed_samples: int = 0
    """Samples that were computed at once, of this request and of others."""

    @property
    def signature(self) -> Signature:
        """What must be equal for requests to be computed at once."""
        return tuple((spec.dtype, spec.shape[1:]) for spec in self.frame.specs if spec.role is Role.SMASHED)

    @property
    def traced(self) -> bool:
        """Whether the client wants to know the times."""
        return Flag.TRACE in self.frame.header.flags

    def times(self, hop: int, answer_ns: int, answered_ns: int) -> HopTimes:
        """What is told of it at hop `hop`, whose answer's header was read and which was answered then."""
        return HopTimes(
            hop,
            self.header_ns,
            self.received_ns,
            self.taken_ns,
            self.computed_ns,
            self.encoded_ns,
            self.sent_ns,
            answer_ns,
            answered_ns,
            self.computed_samples,
        )
