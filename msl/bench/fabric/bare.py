"""Members of a chain over bare sockets, without frames: what the fabric costs when nothing above it takes time.

An NSF is one thread that moves bytes both ways with epoll. The source numbers its messages, the sink answers them in
one thread. They know their fabric only as what makes the sockets.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator

from msl.bench.fabric.framed import check_answer
from msl.bench.fabric.order import NUMBER, SILENCE_S, SMALLEST, Ledger, Order, Tally, number_of, random_messages
from msl.bench.window import Passed, for_a_while
from msl.errors import NetworkError
from msl.net.fabric import Fabric, endpoint_of

_BUFFER = 256 * 1024
"""Bytes that a relay moves at once, and holds at most, each way."""


class BareSource:
    """The source: sends messages, and checks each answer.

    Args:
        fabric: makes the socket to the first NSF.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._sock = fabric.onward(None)
        _block(self._sock)
        self._sent = Ledger()

    @property
    def tally(self) -> Tally:
        """What was sent so far."""
        return self._sent.tally

    def measure(self, order: Order) -> Passed:
        """Send messages for a while; with several under way, a second thread sends.

        Raises:
            MslError: an answer was not as it should be, or did not come.
        """
        self._sent.whole = order.whole
        messages = random_messages(order)
        answer = memoryview(bytearray(order.num_bytes if order.echo else SMALLEST))
        waiting: deque[int] = deque()
        with _sending(self._sock, order.in_flight > 1) as send_all:

            def send() -> None:
                number = self._sent.tally.messages
                message = memoryview(messages[number % order.in_flight])
                NUMBER.pack_into(message, order.num_bytes - NUMBER.size, number)
                self._sent.note(message)
                waiting.append(number)
                send_all(message)

            def await_answer() -> None:
                _fill(self._sock, answer)
                number = waiting.popleft()
                check_answer(answer, messages[number % order.in_flight], number, order)

            return for_a_while(order.seconds, order.in_flight, send, await_answer)


class BareRelay:
    """An NSF: moves bytes between two sockets, as they come.

    Args:
        fabric: makes its sockets.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._listener = fabric.listen()
        self.endpoint = endpoint_of(self._listener)

    def open(self, fabric: Fabric) -> None:
        """Wait for the previous hop in the background, and relay from then on."""
        threading.Thread(target=self._run, args=(fabric,), name="bench-relay", daemon=True).start()

    def _run(self, fabric: Fabric) -> None:
        previous, _ = self._listener.accept()
        following = fabric.onward(previous)
        for sock in (previous, following):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with previous, following, contextlib.suppress(OSError):  # whoever misses its bytes tells it
            relay(previous, following)


class BareSink:
    """The sink: a thread that receives messages into one buffer, and answers each.

    Args:
        fabric: makes its socket.
        largest: bytes of the largest message.
    """

    def __init__(self, fabric: Fabric, largest: int) -> None:
        self._listener = fabric.listen()
        self.endpoint = endpoint_of(self._listener)
        self._buffer = memoryview(bytearray(largest))
        self._received = Ledger()
        self._order = Order(SMALLEST, 1, 0.0, False, False)

    @property
    def tally(self) -> Tally:
        """What was received so far."""
        return self._received.tally

    def prepare(self, order: Order) -> None:
        """What the next messages will be; called while none is under way."""
        self._received.whole, self._order = order.whole, order

    def open(self, _fabric: Fabric) -> None:
        """Wait for the previous hop in the background, and answer from then on."""
        threading.Thread(target=self._run, name="bench-sink", daemon=True).start()

    def _run(self) -> None:
        sock, _ = self._listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(None)  # between samples nothing comes
        short = bytearray(SMALLEST)
        with sock, contextlib.suppress(NetworkError, OSError):  # the source, which misses its answers, tells it
            while True:
                _fill(sock, self._buffer[:SMALLEST])
                order = self._order
                message = self._buffer[: order.num_bytes]
                _fill(sock, message[SMALLEST:])
                self._received.note(message)
                NUMBER.pack_into(short, SMALLEST - NUMBER.size, number_of(message))
                sock.sendall(message if order.echo else short)


class _Pipe:
    """One way through a relay."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.rest = memoryview(b"")
        """What has been received and not been sent."""
        self._buffer = memoryview(bytearray(_BUFFER))

    def move(self) -> bool:
        """Receive if nothing is left over, and send; False at the end of the stream."""
        if not self.rest:
            try:
                count = self.source.recv_into(self._buffer)
            except BlockingIOError:
                return True
            if count == 0:
                return False
            self.rest = self._buffer[:count]
        with contextlib.suppress(BlockingIOError):
            self.rest = self.rest[self.target.send(self.rest) :]
        return True


def relay(one: socket.socket, other: socket.socket) -> None:
    """Move bytes both ways until one side ends."""
    for sock in (one, other):
        sock.setblocking(False)
    there, back = _Pipe(one, other), _Pipe(other, one)
    reads = {one.fileno(): there, other.fileno(): back}
    writes = {one.fileno(): back, other.fileno(): there}
    interest = dict.fromkeys(reads, select.EPOLLIN)
    with select.epoll() as poll:
        for fd, events in interest.items():
            poll.register(fd, events)
        while True:
            for fd, events in poll.poll():
                pipes = [writes[fd]] if events & select.EPOLLOUT else []
                if events & ~select.EPOLLOUT and not reads[fd].rest:
                    pipes.append(reads[fd])
                if not all(pipe.move() for pipe in pipes):
                    return
            for fd, events in interest.items():
                # What is not read while something is left over waits in the kernel, and slows the sender down.
                wanted = (0 if reads[fd].rest else select.EPOLLIN) | (select.EPOLLOUT if writes[fd].rest else 0)
                if wanted != events:
                    poll.modify(fd, wanted)
                    interest[fd] = wanted


@contextlib.contextmanager
def _sending(sock: socket.socket, in_thread: bool) -> Iterator[Callable[[memoryview], None]]:
    """What sends a whole message: at once, or in a thread of its own.

    With several messages under way the caller must be free to read: what comes back would fill all buffers.
    """
    if not in_thread:
        yield sock.sendall
        return
    messages: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()

    def run() -> None:
        with contextlib.suppress(OSError):  # the caller, which misses the answer, tells it
            while (message := messages.get()) is not None:
                sock.sendall(message)

    thread = threading.Thread(target=run, name="bench-send", daemon=True)
    thread.start()
    try:
        yield messages.put
    finally:
        messages.put(None)
        thread.join(timeout=SILENCE_S)


def _block(sock: socket.socket) -> None:
    # Blocking with the kernel's deadlines: with one of its own, Python polls before each call.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(None)
    deadline = struct.pack("@ll", int(SILENCE_S), 0)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, deadline)


def _fill(sock: socket.socket, view: memoryview) -> None:
    filled = 0
    while filled < len(view):
        try:
            count = sock.recv_into(view[filled:], 0, socket.MSG_WAITALL)
        except BlockingIOError:
            raise NetworkError(f"nothing came for {SILENCE_S:g} s") from None
        if count == 0:
            raise NetworkError("the peer closed the connection")
        filled += count
