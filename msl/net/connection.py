"""One TCP connection between two hops: whole frames in, whole frames out, each with a deadline."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msl.errors import MslError, NetworkError
from msl.net.buffers import BufferPool, Lease
from msl.net.frame import (
    DESCRIPTOR_SIZE,
    HEADER_SIZE,
    MAX_DOCUMENT,
    MAX_TENSORS,
    DescriptorReader,
    Header,
    Kind,
    TensorSpec,
    encode,
    encode_document,
    parse_document,
    parse_header,
    payloads_in,
    unsent,
)

_STAGING = HEADER_SIZE + MAX_TENSORS * DESCRIPTOR_SIZE
_IOV_MAX = 1024


@dataclass(slots=True)
class Frame:
    """A received frame. `payloads` are views into `lease`; `release` ends their life."""

    header: Header
    specs: tuple[TensorSpec, ...] = ()
    payloads: tuple[memoryview, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)
    lease: Lease | None = None

    @property
    def kind(self) -> Kind:
        """What the frame is for."""
        return self.header.kind

    def release(self) -> None:
        """Give the receive buffer back."""
        if self.lease is not None:
            self.lease.release()


@dataclass(slots=True)
class Traffic:
    """What went over a connection so far; each field has one writer."""

    bytes_in: int = 0
    frames_in: int = 0
    bytes_out: int = 0
    frames_out: int = 0


class Connection:
    """Frames over a connected TCP socket. One thread may receive while another sends.

    Args:
        sock: connected stream socket; owned from here on.
        peer: who is at the other end, for error messages, e.g. `stage 2 on host n2`.
        max_body: largest frame body that is accepted, in bytes.
        silence_s: longest time that one receive or send may make no progress.
    """

    def __init__(self, sock: socket.socket, peer: str, max_body: int, silence_s: float) -> None:
        self.peer = peer
        self.traffic = Traffic()
        self.pool = BufferPool()
        self._sock = sock
        self._max_body = max_body
        self._silence_s = silence_s
        self._descriptors = DescriptorReader()
        self._close_lock = threading.Lock()
        self._staging = memoryview(bytearray(_STAGING))
        self._start = 0  # unread bytes of the staging area: [start, end)
        self._end = 0
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Blocking calls with the kernel's own timeouts, so that one recv can wait for a whole payload
        # (MSG_WAITALL); Python's settimeout would make the socket non-blocking.
        sock.setblocking(True)
        self.set_silence(silence_s)

    def set_silence(self, silence_s: float) -> None:
        """Change the longest time without progress."""
        self._silence_s = silence_s
        seconds = int(silence_s)
        timeval = struct.pack("@ll", seconds, max(1, int((silence_s - seconds) * 1e6)))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def set_max_body(self, max_body: int) -> None:
        """Change the largest frame body that is accepted, in bytes."""
        self._max_body = max_body

    def send(self, header: Header, specs: Sequence[TensorSpec] = (), payloads: Sequence[memoryview] = ()) -> None:
        """Send a tensor frame without copying the payloads.

        Raises:
            NetworkError: the peer is gone, or took no byte for `silence_s`.
        """
        self._write(encode(header, specs, payloads))

    def send_document(self, header: Header, document: Mapping[str, Any] | None = None) -> None:
        """Send a control frame; raises as `send` does."""
        self._write(encode_document(header, document))

    def receive(self) -> Frame:
        """Receive the next frame.

        Raises:
            NetworkError: the peer closed, reset, or sent no byte for `silence_s`.
            ProtocolError: what it sent is no frame; the stream cannot be read on from here.
        """
        header = parse_header(self._take(HEADER_SIZE), self._max_body)
        if header.num_tensors == 0:
            frame = Frame(header, document=parse_document(self._take(header.body_size)))
        else:
            frame = self._receive_tensors(header)
        self.traffic.bytes_in += HEADER_SIZE + header.body_size
        self.traffic.frames_in += 1
        return frame

    def close(self) -> None:
        """Close at once; a thread that waits in `receive` or `send` is woken and fails."""
        with self._close_lock, contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def finish(self) -> None:
        """Say that nothing more will be sent; the peer still may send."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _receive_tensors(self, header: Header) -> Frame:
        specs = self._descriptors.read(bytes(self._take(header.num_tensors * DESCRIPTOR_SIZE)), header)
        total = header.body_size - header.num_tensors * DESCRIPTOR_SIZE
        if not total:
            return Frame(header, specs, tuple(memoryview(b"") for _ in specs))
        lease = self.pool.lease(total)
        try:
            self._fill(lease.view[:total])
        except BaseException:
            lease.release()
            raise
        return Frame(header, specs, payloads_in(lease.view, specs), lease=lease)

    def _take(self, num_bytes: int) -> memoryview:
        """The next bytes of the stream, in the staging area; valid until the next call."""
        if num_bytes > _STAGING:  # only a document can be larger than the staging area
            assert num_bytes <= MAX_DOCUMENT
            view = memoryview(bytearray(num_bytes))
            self._fill(view)
            return view
        if self._end - self._start < num_bytes:
            left = self._end - self._start
            self._staging[:left] = self._staging[self._start : self._end]
            self._start, self._end = 0, left
            while self._end < num_bytes:
                self._end += self._recv(self._staging[self._end :], 0)
        view = self._staging[self._start : self._start + num_bytes]
        self._start += num_bytes
        return view

    def _fill(self, view: memoryview) -> None:
        """Fill `view` with the next bytes of the stream: what is staged first, the rest straight from the socket."""
        staged = min(self._end - self._start, len(view))
        view[:staged] = self._staging[self._start : self._start + staged]
        self._start += staged
        while staged < len(view):
            staged += self._recv(view[staged:], socket.MSG_WAITALL)

    def _recv(self, view: memoryview, flags: int) -> int:
        try:
            count = self._sock.recv_into(view, 0, flags)
        except OSError as error:
            raise self._translate(error, "received from") from error
        if count == 0:
            raise NetworkError(f"{self.peer} closed the connection")
        return count

    def _write(self, pieces: list[bytes | memoryview]) -> None:
        size = sum(len(piece) for piece in pieces)
        left = size
        while left:
            try:
                sent = self._sock.sendmsg(pieces[:_IOV_MAX])
            except OSError as error:
                raise self._translate(error, "taken by") from error
            left -= sent
            if left:
                pieces = unsent(pieces, sent)
        self.traffic.bytes_out += size
        self.traffic.frames_out += 1

    def _translate(self, error: OSError, verb: str) -> NetworkError:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            return NetworkError(f"nothing {verb} {self.peer} for {self._silence_s:g} s")
        if error.errno == errno.EBADF:
            return NetworkError(f"the connection to {self.peer} was closed on this side")
        return NetworkError(f"the connection to {self.peer} broke: {error.strerror}")


def refuse(connection: Connection, error: MslError) -> None:
    """Tell a peer why it is refused, as far as it still listens, and close."""
    with contextlib.suppress(NetworkError):
        connection.send_document(Header(Kind.ERROR), {"kind": type(error).__name__, "message": str(error)})
    connection.close()
