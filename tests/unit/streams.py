"""Both ends of a connection, and frames to send in a form that can be compared with what arrives."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import strategies as st

from msl.net.connection import Connection, Frame
from msl.net.frame import DType, Flag, Header, Kind, Role, TensorSpec, encode, encode_document

MAX_BODY = 1 << 20
PEER = "stage 2 on host n2"


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        yield near, far


@contextlib.contextmanager
def reader(max_body: int = MAX_BODY, silence_s: float = 5.0) -> Iterator[tuple[Connection, socket.socket]]:
    """A connection, and the bare socket at its other end."""
    near, far = socket.socketpair()
    connection = Connection(near, PEER, max_body, silence_s)
    with far:
        yield connection, far
        connection.close()


@contextlib.contextmanager
def running(target: object, *args: object) -> Iterator[threading.Thread]:
    """A thread that must end by the end of the block."""
    thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
    thread.start()
    yield thread
    thread.join(timeout=10)
    assert not thread.is_alive()


@dataclass(frozen=True)
class Sent:
    """A frame to send, in a form that can be compared with what arrives."""

    header: Header
    specs: tuple[TensorSpec, ...] = ()
    payloads: tuple[bytes, ...] = ()
    document: tuple[tuple[str, int], ...] = ()

    def raw(self) -> bytes:
        if self.specs:
            return b"".join(encode(self.header, self.specs, [memoryview(payload) for payload in self.payloads]))
        return b"".join(encode_document(self.header, dict(self.document) or None))


def as_sent(frame: Frame) -> Sent:
    header = Header(
        frame.kind, frame.header.flags, frame.header.step, frame.header.micro_batch, frame.header.batch_samples
    )
    return Sent(header, frame.specs, tuple(map(bytes, frame.payloads)), tuple(frame.document.items()))


@st.composite
def sent_frames(draw: st.DrawFn) -> Sent:
    step = draw(st.integers(0, 2**32 - 1))
    if draw(st.booleans()):
        document = draw(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(), max_size=3))
        if draw(st.booleans()):
            document |= {"long" * 1500: 1}  # longer than the staging area
        return Sent(
            Header(draw(st.sampled_from([Kind.ERROR, Kind.PING, Kind.HELLO])), step=step),
            (),
            (),
            tuple(document.items()),
        )
    sizes = draw(st.lists(st.integers(0, 70) | st.sampled_from([4096, 5000, 20000]), min_size=1, max_size=5))
    specs = tuple(TensorSpec(DType.UINT8, (size,), draw(st.sampled_from(Role))) for size in sizes)
    payloads = tuple(draw(st.randoms(use_true_random=False)).randbytes(size) for size in sizes)
    return Sent(Header(Kind.FORWARD, Flag.TRAIN, step, 1, 8), specs, payloads)
