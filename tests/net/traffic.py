"""The two ends of a chain under load: processes that send each other known bytes and check what arrives.

    python -m tests.net.traffic sink LISTENER
    python -m tests.net.traffic client ADDRESS PORT COUNT PARALLEL BYTES STALL_S

A connection carries BYTES each way at once; nothing may come to a standstill for STALL_S. The client writes one line of
JSON for each connection. It ends when COUNT are done (0: when its standard input ends), and at the first failure it
waits for that, so that its sockets can be looked at.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import sys
import time
from typing import NoReturn

from tests.net.ends import ClientEnd, Corrupt, End, SinkEnd

_ABORT = struct.pack("ii", 1, 0)


def serve(listener: socket.socket) -> None:
    """The sink: until standard input ends; failures go to standard output."""
    listener.setblocking(False)
    poll, ends = select.epoll(), dict[int, End]()
    poll.register(listener, select.EPOLLIN)
    poll.register(0, select.EPOLLIN)
    told: set[str] = set()
    while True:
        for end in ends.values():
            if (stall := end.stall()) is not None and end.name not in told:
                print(stall, flush=True)
                told.add(end.name)
        for number, _ in poll.poll(1):
            if number == 0:
                return
            if number == listener.fileno():
                with contextlib.suppress(OSError):  # reset already
                    end = SinkEnd(listener.accept()[0])
                    ends[end.sock.fileno()] = end
                    _watch(poll, end)
            elif (failure := _advance(poll, ends, ends[number])) is not None:
                print(failure, flush=True)


def _advance(poll: select.epoll, ends: dict[int, End], end: End) -> str | None:
    """Move an end on; why it failed, if it did."""
    failure = None
    try:
        if not end.move():
            _watch(poll, end)
            return None
    except (Corrupt, OSError) as error:
        failure = f"{end.name}: {error}"
        end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    del ends[end.sock.fileno()]
    end.sock.close()
    return failure


def _watch(poll: select.epoll, end: End) -> None:
    wanted = end.wanted()
    if not end.events:
        poll.register(end.sock, wanted)
    elif wanted != end.events:
        poll.modify(end.sock, wanted)
    end.events = wanted


def drive(target: tuple[str, int], count: int, parallel: int, num_bytes: int, stall_s: float) -> None:
    """The client."""
    poll, ends = select.epoll(), dict[int, End]()
    started, stop, checked = 0, False, time.monotonic()
    if not count:
        poll.register(0, select.EPOLLIN)
    while True:
        while len(ends) < parallel and not stop and (not count or started < count):
            end = ClientEnd(target, started, num_bytes, stall_s)
            started += 1
            ends[end.sock.fileno()] = end
            _watch(poll, end)
        if not ends:
            return
        for number, _ in poll.poll(0.1):
            if number == 0:
                stop = True
                poll.unregister(0)
            elif (failure := _advance(poll, ends, ends[number])) is not None:
                _fail(failure)
        if (now := time.monotonic()) > checked + 0.1:
            checked = now
            for end in ends.values():
                if (stall := end.stall()) is not None:
                    _fail(stall)


def _fail(reason: str) -> NoReturn:
    print(json.dumps({"failure": reason}), flush=True)
    sys.stdin.read()
    sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        serve(socket.socket(fileno=int(sys.argv[2])))
    else:
        address, port, count, parallel, num_bytes, stall_s = sys.argv[2:]
        drive((address, int(port)), int(count), int(parallel), int(num_bytes), float(stall_s))
