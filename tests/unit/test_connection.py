"""A connection: frames arrive as they were sent, a deadline on each wait, and bounded memory."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import random
import socket
import time

import pytest

from msl.errors import NetworkError, ProtocolError
from msl.net.buffers import BufferPool
from msl.net.connection import Connection, refuse
from msl.net.frame import ALIGNMENT, DType, Flag, Header, Kind, TensorFlag, TensorSpec
from tests.unit.streams import MAX_BODY, PEER, Sent, as_sent, reader, running, tcp_pair


def test_one_byte_at_a_time_makes_the_same_frames() -> None:
    frame = Sent(Header(Kind.FORWARD, Flag.TRAIN, 3), (TensorSpec(DType.UINT8, (200,)),), (bytes(range(200)),))

    def drip(far: socket.socket) -> None:
        for byte in frame.raw() * 2:
            far.sendall(bytes([byte]))

    with reader() as (connection, far), running(drip, far):
        for _ in range(2):
            assert as_sent(connection.receive()) == frame


def test_frames_that_arrive_together_are_taken_one_by_one() -> None:
    first = Sent(Header(Kind.FORWARD, step=1), (TensorSpec(DType.UINT8, (10,)),), (b"0123456789",))
    second = Sent(Header(Kind.ERROR, step=2), document=(("why", 1),))
    with reader() as (connection, far):
        far.sendall(first.raw() + second.raw() + first.raw())
        assert [as_sent(connection.receive()) for _ in range(3)] == [first, second, first]


def test_what_is_sent_is_received_and_both_count_the_same() -> None:
    with tcp_pair() as (near, far):
        here, there = Connection(near, "there", MAX_BODY, 5.0), Connection(far, "here", MAX_BODY, 5.0)
        payload = memoryview(bytes(range(100)))
        here.send(Header(Kind.BACKWARD, step=9), [TensorSpec(DType.UINT8, (100,))], [payload])
        here.send_document(Header(Kind.ERROR), {"message": "done"})
        frame, error = there.receive(), there.receive()
        assert (frame.kind, frame.header.step, bytes(frame.payloads[0])) == (Kind.BACKWARD, 9, payload)
        assert error.document == {"message": "done"}
        assert here.traffic.bytes_out == there.traffic.bytes_in == 32 + 64 + 128 + 32 + len('{"message":"done"}')
        assert here.traffic.frames_out == there.traffic.frames_in == 2
        here.close()
        there.close()


def test_a_tensor_without_bytes_takes_no_buffer() -> None:
    absent = TensorSpec(DType.FLOAT32, (3,), flags=TensorFlag.ABSENT)
    frame = Sent(Header(Kind.BACKWARD), (absent, TensorSpec(DType.INT64, (0, 4))), (b"", b""))
    with reader() as (connection, far):
        far.sendall(frame.raw())
        received = connection.receive()
        assert as_sent(received) == frame
        assert received.lease is None
        assert connection.pool.allocated_bytes == 0


def test_payloads_start_at_multiples_of_64_in_memory() -> None:
    sizes = (1, 64, 65, 4096, 3)
    specs = tuple(TensorSpec(DType.UINT8, (size,)) for size in sizes)
    frame = Sent(Header(Kind.FORWARD), specs, tuple(bytes([size % 256]) * size for size in sizes))
    with reader() as (connection, far):
        for _ in range(3):
            far.sendall(Sent(Header(Kind.PING)).raw() + frame.raw())  # an odd place in the stream
            connection.receive()
            received = connection.receive()
            addresses = [ctypes.addressof(ctypes.c_char.from_buffer(payload)) for payload in received.payloads]
            assert [address % ALIGNMENT for address in addresses] == [0] * len(sizes)


def test_buffers_are_used_again() -> None:
    frame = Sent(Header(Kind.FORWARD), (TensorSpec(DType.UINT8, (50_000,)),), (bytes(50_000),)).raw()
    with reader() as (connection, far):
        far.sendall(frame)
        connection.receive().release()
        after_one = connection.pool.allocated_bytes
        assert 50_000 <= after_one <= 2 * 50_048
        for _ in range(100):
            far.sendall(frame)
            connection.receive().release()
        assert connection.pool.allocated_bytes == after_one


def test_the_pool_grows_to_what_is_on_loan_at_once_and_no_further() -> None:
    pool = BufferPool()
    for _ in range(20):
        leases = [pool.lease(5000) for _ in range(3)]
        for lease in leases:
            lease.release()
            lease.release()  # a second release must not give the buffer back twice
        assert pool.allocated_bytes == 3 * 8192
    held = [pool.lease(5000) for _ in range(3)]
    assert len({ctypes.addressof(ctypes.c_char.from_buffer(lease.view)) for lease in held}) == 3


@pytest.mark.parametrize(("num_bytes", "size"), [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192), (65536, 65536)])
def test_buffers_come_in_powers_of_two(num_bytes: int, size: int) -> None:
    pool = BufferPool()
    assert len(pool.lease(num_bytes).view) == size
    assert pool.allocated_bytes == size


def test_a_silent_peer_is_named_after_the_deadline() -> None:
    with reader(silence_s=0.2) as (connection, _):
        start = time.monotonic()
        with pytest.raises(NetworkError, match=r"^nothing received from stage 2 on host n2 for 0\.2 s$"):
            connection.receive()
        assert 0.15 < time.monotonic() - start < 2


@pytest.mark.parametrize("size", [10, 32 + 10, 32 + 64 + 10])
def test_a_peer_that_falls_silent_within_a_frame_is_named_after_the_deadline(size: int) -> None:
    frame = Sent(Header(Kind.FORWARD), (TensorSpec(DType.UINT8, (900,)),), (bytes(900),)).raw()
    with reader(silence_s=0.2) as (connection, far):
        far.sendall(frame[:size])
        with pytest.raises(NetworkError, match=r"^nothing received from stage 2 on host n2 for 0\.2 s$"):
            connection.receive()


def test_a_frame_may_take_longer_than_the_deadline_if_bytes_keep_coming() -> None:
    frame = Sent(Header(Kind.FORWARD), (TensorSpec(DType.UINT8, (1000,)),), (bytes(1000),))

    def trickle(far: socket.socket) -> None:
        raw = frame.raw()
        for start in range(0, len(raw), 150):
            far.sendall(raw[start : start + 150])
            time.sleep(0.1)

    with reader(silence_s=0.4) as (connection, far), running(trickle, far):
        start = time.monotonic()
        assert as_sent(connection.receive()) == frame
        assert time.monotonic() - start > 0.4


def test_a_peer_that_takes_nothing_is_named_after_the_deadline() -> None:
    payload = memoryview(bytes(8 << 20))
    told = pytest.raises(NetworkError, match=r"^nothing taken by stage 2 on host n2 for 0\.2 s$")
    with reader(silence_s=0.2) as (connection, _), told:
        connection.send(Header(Kind.FORWARD), [TensorSpec(DType.UINT8, (8 << 20,))], [payload])


def test_a_peer_that_closed_is_named() -> None:
    with reader() as (connection, far):
        far.close()
        with pytest.raises(NetworkError, match=r"^stage 2 on host n2 closed the connection$"):
            connection.receive()
        with pytest.raises(NetworkError, match=r"^the connection to stage 2 on host n2 broke: Broken pipe$"):
            connection.send_document(Header(Kind.PING))


def test_a_peer_that_closed_within_a_frame_is_named() -> None:
    with reader() as (connection, far):
        far.sendall(Sent(Header(Kind.FORWARD), (TensorSpec(DType.UINT8, (900,)),), (bytes(900),)).raw()[:-1])
        far.close()
        with pytest.raises(NetworkError, match=r"^stage 2 on host n2 closed the connection$"):
            connection.receive()


def test_what_was_sent_before_the_close_is_still_received() -> None:
    with tcp_pair() as (near, far):
        here, there = Connection(near, "there", MAX_BODY, 5.0), Connection(far, "here", MAX_BODY, 5.0)
        refuse(here, ProtocolError("no"))
        assert there.receive().document == {"kind": "ProtocolError", "message": "no"}
        with pytest.raises(NetworkError, match=r"^here closed the connection$"):
            there.receive()
        there.close()


def test_a_reset_is_told_as_such() -> None:
    with tcp_pair() as (near, far):
        connection = Connection(near, PEER, MAX_BODY, 5.0)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        far.close()
        with pytest.raises(
            NetworkError, match=r"^the connection to stage 2 on host n2 broke: Connection reset by peer$"
        ):
            connection.receive()
        connection.close()


def test_close_wakes_a_thread_that_waits_to_receive() -> None:
    with reader(silence_s=60) as (connection, _):
        caught: list[Exception] = []
        with running(_collect, connection.receive, caught):
            time.sleep(0.05)
            connection.close()
        assert isinstance(caught[0], NetworkError)


def test_close_wakes_a_thread_that_waits_to_send() -> None:
    spec, payload = TensorSpec(DType.UINT8, (8 << 20,)), memoryview(bytes(8 << 20))
    with reader(silence_s=60) as (connection, _):
        caught: list[Exception] = []
        with running(_collect, lambda: connection.send(Header(Kind.FORWARD), [spec], [payload]), caught):
            time.sleep(0.05)
            connection.close()
        assert isinstance(caught[0], NetworkError)


def _collect(call: object, caught: list[Exception]) -> None:
    try:
        call()  # type: ignore[operator]
    except Exception as error:
        caught.append(error)


def test_a_closed_connection_says_that_it_was_closed_here() -> None:
    with reader() as (connection, _):
        connection.close()
        connection.close()
        with pytest.raises(NetworkError, match=r"^the connection to stage 2 on host n2 was closed on this side$"):
            connection.receive()


def test_finish_ends_one_direction_only() -> None:
    with reader() as (connection, far):
        connection.finish()
        assert far.recv(1) == b""
        far.sendall(Sent(Header(Kind.PING)).raw())
        assert connection.receive().kind is Kind.PING


def test_a_frame_above_the_limit_is_refused_and_the_limit_can_be_changed() -> None:
    frame = Sent(Header(Kind.FORWARD), (TensorSpec(DType.UINT8, (4096,)),), (bytes(4096),))
    with reader(max_body=4095) as (connection, far):
        far.sendall(frame.raw())
        with pytest.raises(ProtocolError, match=r"^a frame of 4160 bytes; this hop accepts at most 4095"):
            connection.receive()
        assert connection.pool.allocated_bytes == 0
    with reader(max_body=4095) as (connection, far):
        connection.set_max_body(4160)
        far.sendall(frame.raw())
        assert as_sent(connection.receive()) == frame


def test_64_mib_each_way_at_once_arrive_whole() -> None:
    chunk, count = 16 << 20, 4
    contents = [random.Random(seed).randbytes(chunk) for seed in range(2)]
    specs = [TensorSpec(DType.UINT8, (chunk,))]
    received: dict[int, str] = {}

    def send(connection: Connection, content: bytes) -> None:
        for _ in range(count):
            connection.send(Header(Kind.FORWARD), specs, [memoryview(content)])

    def take(connection: Connection, side: int) -> None:
        digest = hashlib.blake2b()
        for _ in range(count):
            frame = connection.receive()
            digest.update(frame.payloads[0])
            frame.release()
        received[side] = digest.hexdigest()

    with tcp_pair() as (near, far):
        ends = [Connection(near, "far", 1 << 30, 20.0), Connection(far, "near", 1 << 30, 20.0)]
        with contextlib.ExitStack() as stack:
            for side, connection in enumerate(ends):
                stack.enter_context(running(send, connection, contents[side]))
                stack.enter_context(running(take, connection, side))
        for side, connection in enumerate(ends):
            assert received[side] == hashlib.blake2b(contents[1 - side] * count).hexdigest()
            assert connection.pool.allocated_bytes == chunk  # one buffer, used four times
            connection.close()
