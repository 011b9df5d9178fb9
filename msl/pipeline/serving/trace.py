"""The times of one traced request at one hop, as the tensor that travels back to the client.

A hop's clock means nothing on another host: only differences of one hop's own times are used, and the time on the
network between two hops is what the earlier one waited less what the later one was busy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np

from msl.errors import ProtocolError
from msl.net.frame import DType, Role, TensorSpec


@dataclass(frozen=True)
class HopTimes:
    """Times of a request at a hop, in ns of the hop's monotonic clock; as they stand in a TRACE tensor."""

    hop: int
    header_ns: int
    """The request's header was read."""
    received_ns: int
    """All of it had arrived."""
    taken_ns: int
    """Its computation began."""
    computed_ns: int
    encoded_ns: int
    """What goes on was ready to be sent."""
    sent_ns: int
    """What goes on was given to the socket."""
    answer_ns: int
    """The answer's header was read; at the sink, as `sent_ns`."""
    answered_ns: int
    """The answer was about to be sent."""
    computed_samples: int
    """Samples that were computed at once."""

    @property
    def queue_ns(self) -> int:
        """It waited to be computed."""
        return self.taken_ns - self.received_ns

    @property
    def compute_ns(self) -> int:
        """It was computed, with others that were computed at once."""
        return self.computed_ns - self.taken_ns

    @property
    def serialise_ns(self) -> int:
        """From tensors to a frame."""
        return self.encoded_ns - self.computed_ns

    @property
    def socket_ns(self) -> int:
        """It was received and sent on, and its answer was."""
        return self.received_ns - self.header_ns + self.sent_ns - self.encoded_ns + self.answered_ns - self.answer_ns

    @property
    def away_ns(self) -> int:
        """Between sending it on and the begin of the answer."""
        return self.answer_ns - self.sent_ns

    @property
    def whole_ns(self) -> int:
        """Between its header and its answer."""
        return self.answered_ns - self.header_ns


FIELDS = tuple(field.name for field in fields(HopTimes))


def encode_times(times: HopTimes) -> tuple[TensorSpec, memoryview]:
    """The TRACE tensor of a hop: int64, one value for each field of `HopTimes`."""
    payload = np.array(astuple(times), dtype="<i8")
    return TensorSpec(DType.INT64, (len(FIELDS),), Role.TRACE), payload.view(np.uint8).data


def decode_times(spec: TensorSpec, payload: memoryview) -> HopTimes:
    """Read a TRACE tensor.

    Raises:
        ProtocolError: it has another shape or element type.
    """
    if spec.dtype is not DType.INT64 or spec.shape != (len(FIELDS),):
        raise ProtocolError(f"a TRACE tensor of shape {spec.shape} of {spec.dtype.name}, not ({len(FIELDS)},) of INT64")
    return HopTimes(*map(int, np.frombuffer(payload, dtype="<i8")))


def network_ns(before: HopTimes, after: HopTimes) -> int:
    """Time on the network between a hop and the next one, both ways together."""
    return before.away_ns - after.whole_ns


def now_ns() -> int:
    """This host's monotonic clock."""
    return time.monotonic_ns()


def ordered(times: Sequence[HopTimes]) -> tuple[HopTimes, ...]:
    """Hops in travel order; a RESULT has them in the order of the way back."""
    return tuple(sorted(times, key=lambda one: one.hop))
