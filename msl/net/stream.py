"""Frames over a non-blocking socket: what has arrived so far, and what is still to be sent.

`msl.net.connection` waits in its own threads for one peer. A service has many peers and waits for all of them at once:
here nothing blocks, and a frame is put together from as many reads as it takes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msl.errors import NetworkError
from msl.net.buffers import Lease
from msl.net.connection import Frame
from msl.net.frame import (
    DESCRIPTOR_SIZE,
    HEADER_SIZE,
    MAX_DOCUMENT,
    MAX_TENSORS,
    DescriptorReader,
    Header,
    TensorSpec,
    encode,
    encode_document,
    parse_document,
    parse_header,
    payloads_in,
    unsent,
)

_STAGING = HEADER_SIZE + MAX_TENSORS * DESCRIPTOR_SIZE + 4096
_IOV_MAX = 1024


@dataclass(slots=True)
class Backlog:
    """What waits to be taken by the peers of several streams."""

    num_bytes: int = 0


Lend = Callable[[int], Lease | None]
"""Lends a buffer of so many bytes; None if there is no room now."""
Check = Callable[[Header, tuple[TensorSpec, ...]], None]
"""Looks at the header and the descriptors of a tensor frame; raises a ProtocolError to refuse it."""


class Stream:
    """One peer of a service.

    Args:
        sock: stream socket, connected or about to be; owned from here on, and made non-blocking.
        peer: who is at the other end, for error messages.
        lend: where payloads are received.
        max_body: largest frame body that is accepted, in bytes.
        backlog: where what is still to be sent is added up.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        lend: Lend,
        max_body: int = MAX_DOCUMENT,
        backlog: Backlog | None = None,
    ) -> None:
        self.peer = peer
        self.max_body = max_body
        self.header_ns = 0
        """When the header of the frame that is being received was read, or that of the last one; monotonic."""
        self.received_s = self.taken_s = time.monotonic()
        """When a byte last arrived from the peer, and when it last took one; monotonic."""
        self.check: Check | None = None
        """Asked about each tensor frame before memory is taken for it."""
        self.starved = False
        """There was no buffer for the payload that comes next: read again when there may be one."""
        self.bytes_in = 0
        self.bytes_out = 0
        self._sock = sock
        self._lend = lend
        self._backlog = backlog or Backlog()
        self._staging = memoryview(bytearray(_STAGING))
        self._start = 0  # unread bytes of the staging area: [start, end)
        self._end = 0
        self._header: Header | None = None
        self._specs: tuple[TensorSpec, ...] = ()
        self._descriptors = DescriptorReader()
        self._lease: Lease | None = None
        self._body: memoryview | None = None  # where the rest of the frame goes, and how much of it is there
        self._filled = 0
        self._outgoing: deque[tuple[list[bytes | memoryview], Sequence[Lease]]] = deque()
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)

    def fileno(self) -> int:
        """Descriptor to be waited for."""
        return self._sock.fileno()

    @property
    def socket(self) -> socket.socket:
        """The socket itself, for what is asked of its addresses."""
        return self._sock

    @property
    def in_frame(self) -> bool:
        """Whether some of a frame has arrived, and some has not."""
        return self._header is not None or self._end > self._start

    @property
    def staged(self) -> bool:
        """Whether something has arrived that `read` has not looked at: no event will tell of it."""
        return self._end > self._start

    @property
    def holds_buffer(self) -> bool:
        """Whether a buffer was lent for a frame that is not complete yet."""
        return self._lease is not None

    @property
    def sending(self) -> bool:
        """Whether something waits for the peer to take it."""
        return bool(self._outgoing)

    @property
    def unsent_frames(self) -> int:
        """Frames that wait for the peer to take them, or to take the rest of them."""
        return len(self._outgoing)

    def expect(self) -> None:
        """Begin to wait for the peer, which was not read from for a while."""
        self.received_s = time.monotonic()

    def connected(self) -> None:
        """Take note that a connection attempt has ended.

        Raises:
            NetworkError: it failed.
        """
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise NetworkError(f"cannot connect to {self.peer}: {os.strerror(code)}")
        self.received_s = self.taken_s = time.monotonic()

    def read(self) -> Frame | None:
        """The next frame, or None if it is not complete yet; `starved` tells if it is for want of a buffer.

        It takes what has arrived, not what arrives meanwhile: after None, wait until the socket can be read.

        Raises:
            EOFError: the peer has said all, and ended at the end of a frame.
            NetworkError: the connection broke, or ended within a frame.
            ProtocolError: what it sent is no frame, or `check` refuses it; the stream cannot be read on from here.
        """
        more = True
        while True:
            if self._body is None:
                self._begin()
            if self._body is not None and self._filled == len(self._body):
                return self._complete()
            if self.starved or not more:
                return None
            more = self._receive()

    def send(
        self,
        header: Header,
        specs: Sequence[TensorSpec] = (),
        payloads: Sequence[memoryview] = (),
        leases: Sequence[Lease] = (),
    ) -> bool:
        """Send a tensor frame, or as much of it as the peer takes now; `leases` are released once it is sent.

        Returns:
            Whether all is sent; if not, call `flush` when the socket can be written to.

        Raises:
            NetworkError: the connection broke.
        """
        return self._put(encode(header, specs, payloads), leases)

    def send_document(self, header: Header, document: Mapping[str, Any] | None = None) -> bool:
        """Send a control frame; as `send`."""
        return self._put(encode_document(header, document), ())

    def flush(self) -> bool:
        """Send what waits; as `send`."""
        while self._outgoing:
            pieces, leases = self._outgoing[0]
            while pieces:
                count = min(len(pieces), _IOV_MAX)
                try:
                    sent = self._sock.sendmsg(pieces[:count])
                except (BlockingIOError, InterruptedError):
                    return False
                except OSError as error:
                    raise NetworkError(f"the connection to {self.peer} broke: {error.strerror}") from error
                self.bytes_out += sent
                self._backlog.num_bytes -= sent
                self.taken_s = time.monotonic()
                whole = sent == sum(map(len, pieces[:count]))
                pieces = pieces[count:] if whole else unsent(pieces, sent)
                self._outgoing[0] = pieces, leases
                if not whole:
                    return False  # the socket is full
            for lease in leases:
                lease.release()
            self._outgoing.popleft()
        return True

    def finish(self) -> None:
        """Say that nothing more will be sent; the peer still may send."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close, and release what was still to be received or sent."""
        self._sock.close()
        if self._lease is not None:
            self._lease.release()
        self._lease, self._body, self._header = None, None, None
        self._start = self._end = 0
        for pieces, leases in self._outgoing:
            self._backlog.num_bytes -= sum(map(len, pieces))
            for lease in leases:
                lease.release()
        self._outgoing.clear()

    def _begin(self) -> None:
        """Read header and descriptors as far as they have arrived, then make room for the rest."""
        if self._header is None:
            if self._end - self._start < HEADER_SIZE:
                return
            self._header = parse_header(self._taken(HEADER_SIZE), self.max_body)
            self.header_ns = time.monotonic_ns()
            self._specs = ()
        header = self._header
        size = header.body_size
        if header.num_tensors:
            descriptors = header.num_tensors * DESCRIPTOR_SIZE
            if not self._specs:
                if self._end - self._start < descriptors:
                    return
                self._specs = self._descriptors.read(bytes(self._taken(descriptors)), header)
                if self.check is not None:
                    self.check(header, self._specs)
            size -= descriptors
            self._lease = self._lend(size) if size else None
            self.starved = bool(size) and self._lease is None
            if self.starved:
                return
            self._body = self._lease.view[:size] if self._lease is not None else memoryview(bytearray())
        else:
            self._body = memoryview(bytearray(size))
        self._filled = min(self._end - self._start, size)
        self._body[: self._filled] = self._taken(self._filled)

    def _complete(self) -> Frame:
        assert self._header is not None
        assert self._body is not None
        header, body, lease, specs = self._header, self._body, self._lease, self._specs
        self._header, self._body, self._lease = None, None, None
        if not header.num_tensors:
            return Frame(header, document=parse_document(body))
        return Frame(header, specs, payloads_in(body, specs), lease=lease)

    def _taken(self, num_bytes: int) -> memoryview:
        view = self._staging[self._start : self._start + num_bytes]
        self._start += num_bytes
        return view

    def _receive(self) -> bool:
        """Take what has arrived, into the body or for the next header; False if that was all of it."""
        if self._body is not None:
            view = self._body[self._filled :]
        else:
            if self._start:
                left = self._end - self._start
                self._staging[:left] = self._staging[self._start : self._end]
                self._start, self._end = 0, left
            view = self._staging[self._end :]
        try:
            count = self._sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise NetworkError(f"the connection to {self.peer} broke: {error.strerror}") from error
        if not count:
            if self.in_frame:
                raise NetworkError(f"{self.peer} closed the connection in the middle of a frame")
            raise EOFError
        if self._body is not None:
            self._filled += count
        else:
            self._end += count
        self.bytes_in += count
        self.received_s = time.monotonic()
        return count == len(view)

    def _put(self, pieces: list[bytes | memoryview], leases: Sequence[Lease]) -> bool:
        if not self._outgoing:
            self.taken_s = time.monotonic()  # this side's patience begins now
        self._outgoing.append((pieces, leases))
        self._backlog.num_bytes += sum(map(len, pieces))
        return len(self._outgoing) == 1 and self.flush()
