"""A stream through a chain, both ways at once and as fast as it goes, and the pauses in what arrives at either end."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray

from msl.actors.cluster import Session
from msl.bench.calls import Actors, answer
from msl.bench.fabric.bare import BareRelay
from msl.errors import NetworkError
from msl.net.fabric import endpoint_of
from msl.net.sfc.fabric import SfcFabric
from msl.plan import ChainPlan, Place

_BLOCK = 64 * 1024
_NOTED_S = 0.0005
"""Shorter pauses are none."""
_CALL_S = 30.0
_KEPT = 1_000_000


class Pause(NamedTuple):
    """Nothing arrived in between; seconds of the machine's monotonic clock."""

    begin_s: float
    end_s: float


class Progress(NamedTuple):
    """What an end has received so far."""

    num_bytes: int
    wrong: int
    """Bytes that were not those that were sent."""
    failed: str | None


class _End:
    """One end of the stream: sends a known pattern for ever, and checks what arrives."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(None)
        self._sock = sock
        self._pattern = memoryview(bytes(range(256)) * (2 * _BLOCK // 256))
        self.pauses: list[Pause] = []
        self.num_bytes = self.wrong = 0
        self.failed: str | None = None
        for work in (self._send, self._receive):
            threading.Thread(target=self._guarded, args=(work,), name="bench-stream", daemon=True).start()

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except OSError as error:
            self.failed = self.failed or f"the connection broke: {error.strerror or error}"

    def _send(self) -> None:
        while True:
            self._sock.sendall(self._pattern[:_BLOCK])  # a whole number of patterns

    def _receive(self) -> None:
        buffer = memoryview(bytearray(_BLOCK))
        last = time.monotonic()
        while count := self._sock.recv_into(buffer):
            now = time.monotonic()
            if now - last > _NOTED_S and len(self.pauses) < _KEPT:
                self.pauses.append(Pause(last, now))
            last = now
            start = self.num_bytes % 256
            if buffer[:count] != self._pattern[start : start + count]:
                self.wrong += 1
            self.num_bytes += count
        self.failed = self.failed or "the peer closed the connection"


@ray.remote
class StreamMember:
    """A place of the stream's chain."""

    def __init__(self, chain: ChainPlan, place: Place) -> None:
        self._fabric = SfcFabric(chain, place.hop)
        self._place = place
        self._end: _End | None = None
        self._relay: BareRelay | None = None
        self._listener: socket.socket | None = None

    def listen(self) -> None:
        """Listen for the previous hop."""
        if self._place.role == "nsf":
            self._relay = BareRelay(self._fabric)
        elif self._place.role == "sink":
            self._listener = self._fabric.listen()

    def open(self) -> None:
        """Open onward, in the background but at the source."""
        if self._relay is not None:
            self._relay.open(self._fabric)
        elif self._listener is not None:
            threading.Thread(target=self._accept, name="bench-accept", daemon=True).start()
        else:
            self._end = _End(self._fabric.onward(None))

    def progress(self) -> Progress:
        """What has arrived here."""
        if self._end is None:
            return Progress(0, 0, None)
        return Progress(self._end.num_bytes, self._end.wrong, self._end.failed)

    def pauses(self) -> list[Pause]:
        """The pauses since the last call, and the one that lasts."""
        assert self._end is not None
        taken, self._end.pauses = self._end.pauses, []
        return taken

    def _accept(self) -> None:
        assert self._listener is not None
        endpoint_of(self._listener)
        sock, _ = self._listener.accept()
        self._end = _End(sock)


class Stream:
    """A stream that runs.

    Args:
        session: the cluster.
        started: starts the actors.
        chain: through which it goes.
        places: of its members.
    """

    def __init__(self, session: Session, started: Actors, chain: ChainPlan, places: Sequence[Place]) -> None:
        self._members = [started.start(StreamMember, session.nodes[place.host], chain, place) for place in places]
        for method in ("__ray_ready__", "listen"):
            for member in self._members:
                answer(getattr(member, method).remote(), f"stream, {method}", _CALL_S)
        for member in reversed(self._members):
            answer(member.open.remote(), "stream, open", _CALL_S)
        self._await_flow()

    def pauses(self) -> list[Pause]:
        """The pauses of both ends since the last call."""
        return [pause for end in self._ends for pause in answer(end.pauses.remote(), "stream", _CALL_S)]

    def check(self) -> int:
        """Bytes that have arrived at both ends.

        Raises:
            NetworkError: some were wrong, or the connection broke.
        """
        found = [answer(end.progress.remote(), "stream", _CALL_S) for end in self._ends]
        for one in found:
            if one.failed or one.wrong:
                raise NetworkError(f"the stream failed: {one.failed or f'{one.wrong} blocks were wrong'}")
        return sum(one.num_bytes for one in found)

    def end(self) -> None:
        """End the actors."""
        for member in self._members:
            with contextlib.suppress(Exception):
                ray.kill(member)

    @property
    def _ends(self) -> list[Any]:
        return [self._members[0], self._members[-1]]

    def _await_flow(self) -> None:
        deadline = time.monotonic() + _CALL_S
        while any(not answer(end.progress.remote(), "stream", _CALL_S).num_bytes for end in self._ends):
            if time.monotonic() > deadline:
                raise NetworkError(f"nothing has come through the chain within {_CALL_S:g} s")
            time.sleep(0.05)


def longest(pauses: Sequence[Pause], begin_s: float, end_s: float) -> float:
    """The longest pause that overlaps a window, in seconds."""
    return max((p.end_s - p.begin_s for p in pauses if p.end_s > begin_s and p.begin_s < end_s), default=0.0)
