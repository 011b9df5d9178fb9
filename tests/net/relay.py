"""A pass-through NSF: a process that hands connections on byte for byte, from the client's address to the service's.

    python -m tests.net.relay LISTENER      the descriptor of a transparent listener

Bytes are spliced from socket to pipe to socket, so that load tests measure the network and not Python. With `--copy`
they go through a buffer, as in a real NSF. Ends and resets are passed on, each way for itself.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Protocol

from msl.net.sfc.fabric import transparent_to

_PIPE_BYTES = 1 << 20
_TURNS = 16
"""How often a connection moves bytes before it is another one's turn."""
_ABORT = struct.pack("ii", 1, 0)


class Way(Protocol):
    """One direction of one connection."""

    over: bool

    def move(self) -> bool:
        """Move what can be moved without waiting; whether there was anything."""

    def close(self) -> None: ...


class SplicedWay:
    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self._source, self._target = source, target
        self._outlet, self._inlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self._inlet, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._held = 0
        self._ended = self.over = False

    def move(self) -> bool:
        moved = False
        if not self._ended:
            try:
                taken = os.splice(self._source.fileno(), self._inlet, _PIPE_BYTES, flags=os.SPLICE_F_NONBLOCK)
                self._ended = not taken
                self._held += taken
                moved = True
            except BlockingIOError:  # nothing there, or the pipe is full
                pass
        if self._held:
            try:
                self._held -= os.splice(self._outlet, self._target.fileno(), self._held, flags=os.SPLICE_F_NONBLOCK)
                moved = True
            except BlockingIOError:
                pass
        if self._ended and not self._held and not self.over:
            self._target.shutdown(socket.SHUT_WR)
            self.over = True
        return moved

    def close(self) -> None:
        os.close(self._outlet)
        os.close(self._inlet)


class CopiedWay:
    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self._source, self._target = source, target
        self._buffer = memoryview(bytearray(_PIPE_BYTES))
        self._held = self._buffer[:0]
        self._ended = self.over = False

    def move(self) -> bool:
        moved = False
        try:
            if not self._held and not self._ended:
                self._held = self._buffer[: self._source.recv_into(self._buffer)]
                self._ended = not self._held
                moved = True
            if self._held:
                self._held = self._held[self._target.send(self._held) :]
                moved = True
        except BlockingIOError:
            pass
        if self._ended and not self._held and not self.over:
            self._target.shutdown(socket.SHUT_WR)
            self.over = True
        return moved

    def close(self) -> None:
        pass


class Crossing:
    """A connection on its way through: the accepted socket, the one onward, and both ways between them."""

    def __init__(self, accepted: socket.socket, make_way: Callable[[socket.socket, socket.socket], Way]) -> None:
        self.onward = transparent_to(accepted)
        self.accepted = accepted
        self.port = accepted.getpeername()[1]
        for sock in (self.accepted, self.onward):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.onward.connect_ex(accepted.getsockname()[:2])
        self._ways = [make_way(self.accepted, self.onward), make_way(self.onward, self.accepted)]

    def move(self) -> bool:
        """Move bytes both ways; whether there may be more to move.

        Raises:
            OSError: one of the two connections was reset.
        """
        for _ in range(_TURNS):
            forward, backward = (way.move() for way in self._ways)
            if not forward and not backward:
                return False
        return True

    @property
    def over(self) -> bool:
        return all(way.over for way in self._ways)

    def close(self, abort: bool) -> None:
        for way in self._ways:
            way.close()
        for sock in (self.accepted, self.onward):
            if abort:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            sock.close()


def relay(listener: socket.socket, make_way: Callable[[socket.socket, socket.socket], Way]) -> None:
    """Serve until standard input ends: with whoever started this process, at the latest."""
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(0, select.EPOLLIN)
    crossings: dict[int, Crossing] = {}
    unfinished: set[Crossing] = set()
    while True:
        events = poll.poll(0 if unfinished else -1)
        if any(number == 0 for number, _ in events):
            return
        ready = {crossings[number] for number, _ in events if number in crossings} | unfinished
        unfinished = set()
        if any(number == listener.fileno() for number, _ in events):
            for crossing in _accept(listener, make_way):
                for sock in (crossing.accepted, crossing.onward):
                    crossings[sock.fileno()] = crossing
                    poll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
        for crossing in ready:
            try:
                if crossing.move():
                    unfinished.add(crossing)
                    continue
                if not crossing.over:
                    continue
                abort = False
            except OSError as error:
                print(f"port {crossing.port}: {error}", flush=True)
                abort = True
            for sock in (crossing.accepted, crossing.onward):
                del crossings[sock.fileno()]
            crossing.close(abort)


def _accept(listener: socket.socket, make_way: Callable[[socket.socket, socket.socket], Way]) -> list[Crossing]:
    found = []
    while True:
        try:
            accepted, _ = listener.accept()
        except BlockingIOError:
            return found
        try:
            found.append(Crossing(accepted, make_way))
        except OSError as error:  # reset already
            print(f"new connection: {error}", flush=True)
            accepted.close()


if __name__ == "__main__":
    relay(socket.socket(fileno=int(sys.argv[1])), CopiedWay if "--copy" in sys.argv else SplicedWay)
