"""A connection fed at random: the same frames however the bytes are cut, and any bytes are frames or refused."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from msl.errors import NetworkError
from msl.net.connection import Connection
from msl.net.frame import Header, Kind
from tests.unit.streams import Sent, as_sent, reader, running, sent_frames


@settings(deadline=None)
@given(st.data(), st.lists(sent_frames(), min_size=1, max_size=6))
def test_frames_do_not_depend_on_how_the_stream_is_cut(data: st.DataObject, frames: list[Sent]) -> None:
    raw = b"".join(frame.raw() for frame in frames)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=30).map(sorted))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]

    def feed(far: socket.socket) -> None:
        for piece in pieces:
            far.sendall(piece)
            time.sleep(0)  # let the reader take this piece alone

    with reader() as (connection, far), running(feed, far):
        for frame in frames:
            received = connection.receive()
            assert as_sent(received) == frame
            received.release()
        assert connection.traffic.bytes_in == len(raw)
        assert connection.traffic.frames_in == len(frames)


def drain(connection: Connection) -> None:
    while True:
        connection.receive().release()


def read_all(raw: bytes, limit: int) -> None:
    """Feed bytes to a reader until it refuses or they end; it may raise nothing but its own errors."""

    def feed(far: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a reader that refuses closes
            far.sendall(raw)
        far.close()

    with reader(limit, silence_s=5.0) as (connection, far), running(feed, far):
        with pytest.raises(NetworkError):
            drain(connection)
        connection.close()
        assert connection.pool.allocated_bytes <= 2 * max(4096, limit)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=600))
@example(b"")
@example(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))
@example(Sent(Header(Kind.HELLO)).raw()[:-8] + (65536).to_bytes(8, "little") + b"[" * 65536)
def test_any_bytes_are_frames_or_refused(raw: bytes) -> None:
    read_all(raw, 65536)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(st.data(), st.lists(sent_frames(), min_size=1, max_size=3))
def test_frames_with_bytes_changed_are_frames_or_refused(data: st.DataObject, frames: list[Sent]) -> None:
    raw = bytearray(b"".join(frame.raw() for frame in frames))
    for _ in range(data.draw(st.integers(1, 4))):
        # Most changes near the start, where header and descriptors are.
        index = data.draw(st.integers(0, min(len(raw), 200) - 1) | st.integers(0, len(raw) - 1))
        raw[index] = data.draw(st.integers(0, 255) | st.sampled_from([0, 1, 127, 128, 255]))
    read_all(bytes(raw), 16384)
