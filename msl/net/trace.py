"""Where the time of one request went: what each hop tells of itself in a TRACE tensor, put together at the client.

A hop's clock means nothing on another host: only differences of one hop's own times are used, and the time on the
network between two hops is what the earlier one waited less what the later one was busy.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

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
    def receive_ns(self) -> int:
        """Between its first bytes and its last. No part of a sum: the hop before sends it at the same time."""
        return self.received_ns - self.header_ns

    @property
    def socket_ns(self) -> int:
        """It was sent on, and its answer received."""
        return self.sent_ns - self.encoded_ns + self.answered_ns - self.answer_ns

    @property
    def away_ns(self) -> int:
        """Between sending it on and the begin of the answer."""
        return self.answer_ns - self.sent_ns

    @property
    def whole_ns(self) -> int:
        """Between its arrival and its answer: the sum of queue, compute, serialise, socket and away."""
        return self.answered_ns - self.received_ns


@dataclass(frozen=True)
class ClientTimes:
    """Times of a request at its client, in ns of the client's monotonic clock."""

    begin_ns: int
    """It was asked for."""
    encoded_ns: int
    """Its frame was ready to be sent."""
    sent_ns: int
    """The frame was given to the socket."""
    answer_ns: int
    """The answer's header was read."""
    received_ns: int
    """All of the answer had arrived."""
    end_ns: int
    """The outputs were made of it."""

    @property
    def serialise_ns(self) -> int:
        """From arrays to a frame, and back."""
        return self.encoded_ns - self.begin_ns + self.end_ns - self.received_ns

    @property
    def socket_ns(self) -> int:
        """The request was sent, and its answer received."""
        return self.sent_ns - self.encoded_ns + self.received_ns - self.answer_ns

    @property
    def away_ns(self) -> int:
        """Between sending it and the begin of the answer."""
        return self.answer_ns - self.sent_ns

    @property
    def whole_ns(self) -> int:
        """From the question to the outputs."""
        return self.end_ns - self.begin_ns


@dataclass(frozen=True)
class Trace:
    """Where the time of one request went.

    `total_ns` is the sum of the client's `serialise_ns` and `socket_ns`, of every hop's `queue_ns`, `compute_ns`,
    `serialise_ns` and `socket_ns`, and of `network_ns`.
    """

    client: ClientTimes
    hops: tuple[HopTimes, ...]
    """In travel order."""
    names: tuple[str, ...]
    """What the hops are called, e.g. `nsf1 on n1`."""

    @property
    def total_ns(self) -> int:
        """From the question to the outputs."""
        return self.client.whole_ns

    @property
    def network_ns(self) -> tuple[int, ...]:
        """For each hop: time on the network between the one before it and itself, both ways together.

        An answer that the client does not read at once counts as on the network. A value may be a few microseconds
        below 0: a sender may learn that all is sent when the receiver has it already.
        """
        waited = [self.client.away_ns, *(hop.away_ns for hop in self.hops)]
        return tuple(away - hop.whole_ns for away, hop in zip(waited, self.hops, strict=False))


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


def now_ns() -> int:
    """This host's monotonic clock."""
    return time.monotonic_ns()


def assemble(client: ClientTimes, hops: Sequence[HopTimes], path: Sequence[Mapping[str, Any]]) -> Trace:
    """Put together what was told of a request.

    Args:
        client: the client's own times.
        hops: the hops' times, in any order; a RESULT has them in the order of the way back.
        path: the hops as WELCOME lists them.

    Raises:
        ProtocolError: not exactly one of each hop.
    """
    ordered = tuple(sorted(hops, key=lambda times: times.hop))
    told, wanted = [times.hop for times in ordered], [entry.get("hop") for entry in path]
    if told != wanted:
        raise ProtocolError(f"a RESULT with TRACE tensors of the hops {told}; the path has {wanted}")
    return Trace(client, ordered, tuple(f"{entry.get('name')} on {entry.get('host')}" for entry in path))
