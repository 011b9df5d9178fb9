"""One end of a connection that carries known bytes both ways at once, without ever waiting.

The bytes are a block of random ones over and over, which begins at another place for each connection and way, so that a
byte that went astray shows. The sink's last word is a verdict on what it received; so the client knows all.
"""

from __future__ import annotations

import json
import math
import os
import random
import select
import socket
import struct
import time
from dataclasses import dataclass

BLOCK_BYTES = (1 << 20) + 7
_BLOCK = random.Random(20_260_101).randbytes(BLOCK_BYTES)
_DOUBLE = memoryview(_BLOCK + _BLOCK)
_PIECE = 1 << 17
"""Bytes that are received before they are compared."""
_AT_ONCE = 1 << 20
_TURNS = 8
_CONNECT_S = 10.0
_HEADER = struct.Struct("!4sIQ16sHd")
_VERDICT = struct.Struct("!4sd")


class Corrupt(Exception):  # noqa: N818
    """Other bytes arrived than were sent."""


@dataclass(frozen=True)
class Opening:
    """What the client says first."""

    number: int
    num_bytes: int
    client: tuple[str, int]
    stall_s: float
    """What is too long without a byte."""

    def encode(self) -> bytes:
        address = socket.inet_pton(socket.AF_INET6, self.client[0])
        return _HEADER.pack(b"open", self.number, self.num_bytes, address, self.client[1], self.stall_s)

    @staticmethod
    def decode(data: bytes) -> Opening:
        magic, number, num_bytes, address, port, stall_s = _HEADER.unpack(data)
        if magic != b"open":
            raise Corrupt(f"begins with {data!r}")
        return Opening(number, num_bytes, (socket.inet_ntop(socket.AF_INET6, address), port), stall_s)

    def phase(self, forward: bool) -> int:
        return (self.number * 7919 + (0 if forward else 500_009)) % BLOCK_BYTES


class Sender:
    """Sends the known bytes from a file in memory, so that the kernel need not copy them."""

    _file = os.memfd_create("block")
    os.write(_file, _DOUBLE)

    def __init__(self, sock: socket.socket, phase: int, num_bytes: int) -> None:
        self._sock, self._phase, self.left = sock, phase, num_bytes
        self.last = time.monotonic()

    def move(self) -> bool:
        """Send what can be sent; whether there was anything."""
        if not self.left:
            return False
        try:
            sent = os.sendfile(self._sock.fileno(), self._file, self._phase, min(self.left, _AT_ONCE))
        except BlockingIOError:
            return False
        self.last = time.monotonic()
        self.left -= sent
        self._phase = (self._phase + sent) % BLOCK_BYTES
        return True


class Receiver:
    """Receives and compares."""

    def __init__(self, sock: socket.socket, phase: int, num_bytes: int) -> None:
        self._sock, self._phase, self.left, self.total = sock, phase, num_bytes, num_bytes
        self._piece = bytearray(_PIECE)
        self._filled = 0
        self.last, self.gap_s = time.monotonic(), 0.0

    def move(self) -> bool:
        """Receive what is there; whether there was anything.

        Raises:
            Corrupt: it is not what was sent, or not all.
        """
        if not self.left:
            return False
        wanted = min(_PIECE - self._filled, self.left)
        try:
            count = self._sock.recv_into(memoryview(self._piece)[self._filled :], wanted)
        except BlockingIOError:
            return False
        now = time.monotonic()
        self.gap_s, self.last = max(self.gap_s, now - self.last), now
        if not count:
            raise Corrupt(f"ends after {self.total - self.left} of {self.total} bytes")
        self._filled += count
        self.left -= count
        if self._filled == _PIECE or not self.left:
            self._compare()
        return True

    def _compare(self) -> None:
        wanted = _DOUBLE[self._phase : self._phase + self._filled]
        # A bytearray compares itself with a view at once, a view byte for byte.
        if (self._piece if self._filled == _PIECE else self._piece[: self._filled]) != wanted:
            at = next(i for i in range(self._filled) if self._piece[i] != wanted[i])
            found = _BLOCK.find(self._piece[at : at + 16])
            offset = self.total - self.left - self._filled + at
            raise Corrupt(f"wrong byte {offset} of {self.total}; found at {found} of the block, not {self._phase + at}")
        self._phase = (self._phase + self._filled) % BLOCK_BYTES
        self._filled = 0


class End:
    """One end of a connection."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock = sock
        self.name = name
        self.opened = time.monotonic()
        self.opening: Opening | None = None
        self.sender: Sender | None = None
        self.receiver: Receiver | None = None
        self._last_words = b""
        self.events = 0
        """What it was waiting for last."""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def begin(self, opening: Opening, forward: bool) -> None:
        self.opening = opening
        self.name = f"connection {opening.number} (port {opening.client[1]})"
        self.sender = Sender(self.sock, opening.phase(forward), opening.num_bytes)
        self.receiver = Receiver(self.sock, opening.phase(not forward), opening.num_bytes)

    def move(self) -> bool:
        """Go on as far as possible without waiting; whether it is over."""
        for _ in range(_TURNS):
            assert self.sender is not None
            assert self.receiver is not None
            sent, received = self.sender.move(), self.receiver.move()
            if not sent and not received:
                break
        return not self.sender.left and not self.receiver.left and self.finish()

    def finish(self) -> bool:
        raise NotImplementedError

    def wanted(self) -> int:
        """What to wait for."""
        return select.EPOLLIN | (select.EPOLLOUT if self.sender is not None and self.sender.left else 0)

    def stall(self) -> str | None:
        """What to say if nothing has come or gone for too long that was to."""
        if self.opening is None or self.sender is None or self.receiver is None:
            return None
        idle_s = time.monotonic() - min(
            (way.last for way in (self.sender, self.receiver) if way.left), default=math.inf
        )
        if idle_s < self.opening.stall_s:
            return None
        left = f"{self.receiver.left} bytes not received, {self.sender.left} not sent"
        return f"{self.name}: stalled for {idle_s:.1f} s; {left}"


class SinkEnd(End):
    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, f"port {sock.getpeername()[1]}")

    def move(self) -> bool:
        if self.opening is None:
            try:
                opening = Opening.decode(self.sock.recv(_HEADER.size, socket.MSG_PEEK))
            except struct.error:
                return False  # not all there yet
            except BlockingIOError:
                return False
            self.sock.recv(_HEADER.size)
            if opening.client != self.sock.getpeername()[:2]:
                raise Corrupt(f"client is {opening.client}, seen as {self.sock.getpeername()[:2]}")
            self.begin(opening, forward=False)
        return super().move()

    def finish(self) -> bool:
        if not self._last_words:
            assert self.receiver is not None
            self.sock.send(_VERDICT.pack(b"good", self.receiver.gap_s))
            self._last_words = b"sent"
        try:
            if self.sock.recv(1):
                raise Corrupt("more bytes than were sent")
        except BlockingIOError:
            return False
        return True


class ClientEnd(End):
    def __init__(self, target: tuple[str, int], number: int, num_bytes: int, stall_s: float) -> None:
        super().__init__(socket.socket(socket.AF_INET6, socket.SOCK_STREAM), f"connection {number}")
        self._number, self._num_bytes, self._stall_s = number, num_bytes, stall_s
        self.sock.connect_ex(target)

    def move(self) -> bool:
        if self.opening is None:
            if error := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, f"cannot connect: {os.strerror(error)}")
            opening = Opening(self._number, self._num_bytes, self.sock.getsockname()[:2], self._stall_s)
            self.sock.send(opening.encode())
            self.begin(opening, forward=True)
        return super().move()

    def wanted(self) -> int:
        return select.EPOLLOUT if self.opening is None else super().wanted()

    def stall(self) -> str | None:
        if self.opening is None and time.monotonic() > self.opened + _CONNECT_S:
            return f"{self.name} (port {self.sock.getsockname()[1]}): cannot connect in {_CONNECT_S} s"
        return super().stall()

    def finish(self) -> bool:
        try:
            while piece := self.sock.recv(_VERDICT.size + 1):
                self._last_words += piece
                if len(self._last_words) > _VERDICT.size:
                    raise Corrupt("more bytes than were sent")
                if len(self._last_words) == _VERDICT.size:
                    # First to close, as clients are: the connection's last state is at its end.
                    self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return False
        if len(self._last_words) < _VERDICT.size:
            raise Corrupt("ends without a verdict")
        self._report(*_VERDICT.unpack(self._last_words))
        return True

    def _report(self, good: bytes, gap_s: float) -> None:
        if good != b"good":
            raise Corrupt(f"verdict {good!r}")
        assert self.receiver is not None
        assert self.opening is not None
        report = {"number": self.opening.number, "port": self.opening.client[1], "forward_gap_s": gap_s}
        report |= {"backward_gap_s": self.receiver.gap_s, "seconds": time.monotonic() - self.opened}
        print(json.dumps(report), flush=True)
