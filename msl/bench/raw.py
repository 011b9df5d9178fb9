"""The way `raw`: bytes over a bare TCP socket, as fast as Python can move them; the yardstick of a hop.

A message is as long as a hop's frame, 96 bytes (frame header and one tensor descriptor) and the payload, and so
is its answer, 160 bytes (frame header, one descriptor, one padded METRIC tensor). Nothing is checked, queued or
allocated, and each end has one thread.
"""

from __future__ import annotations

import socket
import struct
import threading

import torch

from msl.bench.hop import LAST
from msl.errors import NetworkError
from msl.net.fabric import DirectFabric, Endpoint, endpoint_of
from msl.net.frame import ALIGNMENT, DESCRIPTOR_SIZE, HEADER_SIZE

_HEADER_SIZE = HEADER_SIZE + DESCRIPTOR_SIZE
_LENGTH = struct.Struct("<Q")
_ANSWER = bytes(_HEADER_SIZE + ALIGNMENT)


class RawSender:
    """The sending end."""

    def __init__(self, address: str, receiver: Endpoint) -> None:
        self._sock = DirectFabric(address, receiver).onward(None)
        _prepare(self._sock)
        self._answer = memoryview(bytearray(len(_ANSWER)))

    def send(self, number: int, tensor: torch.Tensor) -> None:
        """Send one message; blocks until the kernel has taken it."""
        payload = tensor.numpy().reshape(-1).data.cast("B")
        header = _LENGTH.pack(len(payload)).ljust(_HEADER_SIZE, b"\0")
        sent = self._sock.sendmsg([header, payload])
        left = len(header) + len(payload) - sent
        while left:
            left -= self._sock.send(payload[-left:])

    def await_answer(self) -> None:
        """Wait for an answer."""
        _fill(self._sock, self._answer)


class RawReceiver:
    """The receiving end: a thread that receives every payload into the same buffer, and answers it.

    Args:
        address: where to listen.
        max_body: size of the buffer.
    """

    def __init__(self, address: str, max_body: int) -> None:
        self._listener = DirectFabric(address).listen()
        self.endpoint = endpoint_of(self._listener)
        self.last = 0.0
        """Last element of the last payload."""
        self.received = 0
        self._buffer = memoryview(bytearray(max_body))
        threading.Thread(target=self._run, name="bench-raw", daemon=True).start()

    def _run(self) -> None:
        sock, _ = self._listener.accept()
        _prepare(sock)
        header = memoryview(bytearray(_HEADER_SIZE))
        while True:
            try:
                _fill(sock, header)
                (num_bytes,) = _LENGTH.unpack_from(header)
                _fill(sock, self._buffer[:num_bytes])
                (self.last,) = LAST.unpack_from(self._buffer, num_bytes - LAST.size)
                self.received += 1
                sock.sendall(_ANSWER)
            except (NetworkError, OSError):
                sock.close()  # the sender is gone; whoever misses the answers tells it
                return


def _prepare(sock: socket.socket) -> None:
    # Blocking without a timeout: Python makes a socket with one non-blocking, and polls before each call.
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _fill(sock: socket.socket, view: memoryview) -> None:
    filled = 0
    while filled < len(view):
        count = sock.recv_into(view[filled:], 0, socket.MSG_WAITALL)
        if count == 0:
            raise NetworkError("the peer closed the connection")
        filled += count
