"""Probes of ways: datagrams down a segment list to another host, where they turn, and back over the same routers.

The whole packet is made here: an outer header with an SRH of the way out, the peer's End, the way back and this host's
own SID; and in it a datagram to this host. So one socket sends over any way, and idle ways are known too. The kernel's
receive timestamp tells when an answer came, however late it is read.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from msl.plan.addressing import MAX_SEGMENTS, SegmentList
from msl.plan.paths import Way
from msl.plan.steering import DomainPlan, SrHost
from msl.steering.readings import FULL_EVERY, ProbeReading

_ROUTING, _IPV6, _UDP = 43, 41, 17
_TIMESTAMP = 35
"""SO_TIMESTAMPNS, which the socket module does not have."""
_PAYLOAD = struct.Struct("!IIQ")
"""Mark of this prober, number of the probe, when it was sent (ns since the epoch)."""
_LEAST_WAIT_S, _MOST_WAIT_S = 0.1, 1.0
"""An answer is due after four round trips, within these bounds."""
_SMOOTH = 0.25
_MOST_WAITING = 64
"""Probes of a trip that are waited for at once."""


@dataclass(frozen=True)
class Trip:
    """A way to a peer and back."""

    peer: str
    way: Way
    full_size: bool


@dataclass
class _State:
    segments: SegmentList
    waiting: OrderedDict[int, float] = field(default_factory=OrderedDict)
    """Number of each probe without an answer to when it was sent, by the monotonic clock."""
    sent: int = 0
    answered: int = 0
    missed: int = 0
    in_a_row: int = 0
    rtt_ms: float | None = None

    @property
    def wait_s(self) -> float:
        """How long an answer may take."""
        return _LEAST_WAIT_S if self.rtt_ms is None else min(_MOST_WAIT_S, max(_LEAST_WAIT_S, 4e-3 * self.rtt_ms))


class Prober:
    """Sends probes from this host.

    Args:
        domain: the SR domain.
        host: this host in it.
        size: of the largest packet that the fabric must carry, with all headers.
    """

    def __init__(self, domain: DomainPlan, host: SrHost, size: int) -> None:
        self._domain = domain
        self._host = host
        self._size = size
        self._trips: dict[Trip, _State] = {}
        self._by_number: OrderedDict[int, Trip] = OrderedDict()
        self._number = 0
        self._round = 0
        self.bytes_sent = 0
        with contextlib.ExitStack() as undo:
            self._out = undo.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW))
            self._out.setblocking(False)
            self._in = undo.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            self._in.bind((str(host.address), 0))
            self._in.setsockopt(socket.SOL_SOCKET, _TIMESTAMP, 1)
            self._in.setblocking(False)
            self._mark = id(self) & 0xFFFFFFFF
            undo.pop_all()

    def close(self) -> None:
        """Stop."""
        self._out.close()
        self._in.close()

    def probe(self, ways: Iterable[tuple[str, Way]]) -> None:
        """Probe these ways from now on, each by peer, in both sizes; what is known of others is forgotten."""
        wanted = [Trip(peer, way, full) for peer, way in ways for full in (False, True)]
        self._trips = {trip: self._trips.get(trip) or _State(self._segments(trip)) for trip in wanted}
        self._trips = {trip: state for trip, state in self._trips.items() if len(state.segments) <= MAX_SEGMENTS}

    def send(self) -> None:
        """Send a round: small probes over all ways, and in some rounds large ones."""
        self._round += 1
        for trip, state in self._trips.items():
            if not trip.full_size or self._round % FULL_EVERY == 0:
                self._send(trip, state)

    def receive(self) -> None:
        """Take what has come back, and give up what is overdue."""
        while True:
            try:
                data, ancillary, _, _ = self._in.recvmsg(_PAYLOAD.size, 64)
            except (BlockingIOError, InterruptedError):
                break
            self._take(data, ancillary)
        now = time.monotonic()
        for state in self._trips.values():
            while state.waiting:
                number, sent = next(iter(state.waiting.items()))
                if now - sent <= state.wait_s:
                    break
                del state.waiting[number]
                self._by_number.pop(number, None)
                state.missed += 1
                state.in_a_row = 0

    def readings(self) -> tuple[ProbeReading, ...]:
        """What is known of all ways."""
        return tuple(
            ProbeReading(
                trip.peer,
                trip.way,
                trip.full_size,
                state.sent,
                state.answered,
                state.missed,
                state.in_a_row,
                None if state.rtt_ms is None else round(state.rtt_ms, 4),
            )
            for trip, state in self._trips.items()
        )

    def missed(self, peer: str, way: Way) -> int:
        """Probes in a row that a way has not answered, of the size that fares worse, in rounds."""
        small, full = self._trips.get(Trip(peer, way, False)), self._trips.get(Trip(peer, way, True))
        return max(small.missed if small else 0, FULL_EVERY * full.missed if full else 0)

    def _segments(self, trip: Trip) -> SegmentList:
        way = [self._domain.router(name).sid for name in trip.way]
        return (*way, self._domain.host(trip.peer).turn, *reversed(way), self._host.probes)

    def _send(self, trip: Trip, state: _State) -> None:
        self._number = (self._number + 1) & 0xFFFFFFFF
        packet = self._packet(state.segments, self._domain.host(trip.peer).address, trip.full_size)
        state.sent += 1
        state.waiting[self._number] = time.monotonic()
        self._by_number[self._number] = trip
        if len(state.waiting) > _MOST_WAITING:
            self._by_number.pop(state.waiting.popitem(last=False)[0], None)
        try:
            self._out.sendto(packet, (str(state.segments[0]), 0))
            self.bytes_sent += len(packet)
        except OSError as error:
            if error.errno not in _LOST:
                raise

    def _packet(self, segments: SegmentList, peer: IPv6Address, full_size: bool) -> bytes:
        count = len(segments)
        headers = 40 + 8 + 16 * count + 40 + 8
        room = self._size - headers - _PAYLOAD.size if full_size else 0
        payload = _PAYLOAD.pack(self._mark, self._number, time.time_ns())
        port = self._in.getsockname()[1]
        length = 8 + _PAYLOAD.size + room
        own = self._host.address.packed
        # The padding is zeros, which do not count in the sum.
        total = _sum(peer.packed + own + struct.pack("!IIHHHH", length, _UDP, port, port, length, 0) + payload)
        udp = struct.pack("!HHHH", port, port, length, ~total & 0xFFFF or 0xFFFF)
        inner = struct.pack("!IHBB", 6 << 28, length, _UDP, 64) + peer.packed + own + udp
        srh = struct.pack("!BBBBBBH", _IPV6, 2 * count, 4, count - 1, count - 1, 0, 0)
        srh += b"".join(segment.packed for segment in reversed(segments))
        payload_len = len(srh) + 40 + length
        outer = struct.pack("!IHBB", 6 << 28, payload_len, _ROUTING, 64) + own + segments[0].packed
        return b"".join((outer, srh, inner, payload, bytes(room)))

    def _take(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        if len(data) < _PAYLOAD.size:
            return
        mark, number, sent_ns = _PAYLOAD.unpack_from(data)
        trip = self._by_number.pop(number, None) if mark == self._mark else None
        state = self._trips.get(trip) if trip is not None else None
        if state is None or state.waiting.pop(number, None) is None:
            return  # a stranger's, or given up already
        came_ns = time.time_ns()
        for _, kind, value in ancillary:
            if kind == _TIMESTAMP:
                seconds, nanoseconds = struct.unpack("@qq", value[:16])
                came_ns = seconds * 1_000_000_000 + nanoseconds
        rtt_ms = max(0.0, (came_ns - sent_ns) / 1e6)
        state.rtt_ms = rtt_ms if state.rtt_ms is None else state.rtt_ms + _SMOOTH * (rtt_ms - state.rtt_ms)
        state.answered += 1
        state.in_a_row += 1
        state.missed = 0


_LOST = (
    errno.EAGAIN,
    errno.ENOBUFS,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.EMSGSIZE,
    errno.EPERM,
)
"""What cannot be sent gets no answer."""


def _sum(octets: bytes) -> int:
    """Ones' complement sum (RFC 1071)."""
    octets += bytes(len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total
