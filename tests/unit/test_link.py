"""A link alone: a silent or failed neighbour is named, and none can make its queues grow."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time

import pytest

from msl.errors import NetworkError, ProtocolError
from msl.net.connection import Connection, Frame
from msl.net.frame import DType, Header, Kind, TensorSpec, encode
from msl.pipeline.link import _CONTROL_FRAMES, Inbox, Link
from tests.unit.neighbours import IN_FLIGHT, MAX_BODY, PATIENCE_S, Neighbour, link

# Silence.


def test_a_live_neighbour_with_nothing_to_say_is_not_taken_for_dead() -> None:
    with contextlib.ExitStack() as stack:
        inbox: Inbox = Inbox()
        ours, theirs = socket.socketpair()
        links = [
            Link(Connection(sock, "peer", MAX_BODY, 0.8), side, inbox, IN_FLIGHT, 0.8)  # type: ignore[arg-type]
            for sock, side in ((ours, "next"), (theirs, "previous"))
        ]
        for one in links:
            one.start()
            stack.callback(one.close)
        with pytest.raises(queue.Empty):
            inbox.get(timeout=1.7)
        assert links[0].connection.traffic.frames_in >= 4


def test_a_neighbour_that_takes_nothing_is_named_after_the_deadline() -> None:
    with contextlib.ExitStack() as stack:
        inbox: Inbox = Inbox()
        neighbour, ours = link(stack, "next", inbox, "sink on host n2", 0.4, IN_FLIGHT)
        stack.callback(ours.close)
        spec = TensorSpec(DType.UINT8, (8 << 20,))
        ours.send(Header(Kind.FORWARD), [spec], [memoryview(bytes(8 << 20))])
        stop = threading.Event()

        def ping() -> None:
            while not stop.wait(0.02):
                neighbour.control(Kind.PING)

        thread = threading.Thread(target=ping, daemon=True)
        thread.start()
        what = inbox.get(timeout=PATIENCE_S).what
        stop.set()
        thread.join()
        assert isinstance(what, NetworkError)
        assert str(what) == "nothing taken by sink on host n2 for 0.4 s"


def test_what_a_failed_neighbour_said_last_is_heard_before_that_it_is_gone() -> None:
    spec, payload = TensorSpec(DType.UINT8, (8 << 20,)), memoryview(bytes(8 << 20))
    for _ in range(10):
        with contextlib.ExitStack() as stack:
            inbox: Inbox = Inbox()
            with socket.create_server(("127.0.0.1", 0)) as listener:
                near = socket.create_connection(listener.getsockname())
                far, _ = listener.accept()
            ours = Link(Connection(near, "sink on host n2", MAX_BODY, PATIENCE_S), "next", inbox, IN_FLIGHT, PATIENCE_S)
            ours.start()
            stack.callback(ours.close)
            ours.send(Header(Kind.FORWARD), [spec], [payload])  # more than the socket takes: it is being sent
            neighbour = Neighbour(far)
            far.recv(1)
            neighbour.control(Kind.ERROR, {"message": "the loss is nan"})
            neighbour.connection.close()  # with unread bytes: this resets the connection
            first = inbox.get(timeout=PATIENCE_S).what
            assert isinstance(first, Frame)
            assert first.document == {"message": "the loss is nan"}


# Memory.


def test_a_neighbour_that_does_not_read_cannot_make_the_queue_grow() -> None:
    with contextlib.ExitStack() as stack:
        inbox: Inbox = Inbox()
        _, ours = link(stack, "previous", inbox, "source on host n0", PATIENCE_S, IN_FLIGHT)
        stack.callback(ours.close)
        spec, payload = TensorSpec(DType.UINT8, (1 << 20,)), memoryview(bytes(1 << 20))
        queued = 0

        def fill() -> None:
            nonlocal queued
            for _ in range(1000):
                ours.send(Header(Kind.RESULT), [spec], [payload])
                queued += 1

        with pytest.raises(ProtocolError, match="more frames queued for source on host n0 than are allowed in flight"):
            fill()
        assert queued <= IN_FLIGHT + _CONTROL_FRAMES + 3


@pytest.mark.parametrize("side", ["previous", "next"])
@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.BACKWARD, Kind.RESULT])
def test_a_neighbour_cannot_fill_the_inbox_faster_than_it_is_emptied(side: str, kind: Kind) -> None:
    """Nobody reads the inbox here, as while a stage computes."""
    size = 100_000
    raw = b"".join(encode(Header(kind), [TensorSpec(DType.UINT8, (size,))], [memoryview(bytes(size))]))
    with contextlib.ExitStack() as stack:
        inbox: Inbox = Inbox()
        neighbour, ours = link(stack, side, inbox, "a flood", PATIENCE_S, IN_FLIGHT)
        stack.callback(ours.close)
        thread = threading.Thread(target=_flood, args=(neighbour.connection._sock, raw * 50), daemon=True)
        thread.start()
        deadline = time.monotonic() + PATIENCE_S
        while ours._threads[0].is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        arrivals = [inbox.get_nowait().what for _ in range(inbox.qsize())]
        assert len(arrivals) == (IN_FLIGHT if side == "previous" else 0) + 1
        assert isinstance(arrivals[-1], ProtocolError)
        assert ours.connection.pool.allocated_bytes <= (IN_FLIGHT + 1) * (1 << 17)
        ours.close()
        thread.join(timeout=PATIENCE_S)
        assert not thread.is_alive()


def _flood(sock: socket.socket, raw: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(raw)


@pytest.mark.parametrize("kind", [Kind.EPOCH, Kind.END])
def test_a_flood_of_requests_without_tensors_is_refused_too(kind: Kind) -> None:
    with contextlib.ExitStack() as stack:
        inbox: Inbox = Inbox()
        neighbour, ours = link(stack, "previous", inbox, "a flood", PATIENCE_S, IN_FLIGHT)
        stack.callback(ours.close)
        for _ in range(50):
            neighbour.control(kind)
        deadline = time.monotonic() + PATIENCE_S
        while ours._threads[0].is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert inbox.qsize() == IN_FLIGHT + 1
