"""The opening of a chain: HELLO travels to the sink, WELCOME comes back; strangers are refused and counted.

HELLO says which job a connection belongs to, which hop of it is spoken to, and a digest of the job's schema. WELCOME
lists the stages from the answering hop to the sink, so that the source sees the whole chain that it opened.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from msl.errors import NetworkError, ProtocolError
from msl.net.connection import Connection, refuse
from msl.net.frame import MAX_DOCUMENT, Header, Kind

log = logging.getLogger(__name__)

_HELLO_S = 5.0
"""A connection that has not said HELLO after this time is closed."""
_MAX_PENDING = 32
"""Connections whose HELLO is awaited at once; for one more, the oldest is closed."""
_SHOWN = 200
"""Characters of a stranger's text that are repeated in a message."""
_LONGEST_REASON = 1000
"""Characters of a next hop's reason to refuse; it may hold the reasons of the hops behind it."""


@dataclass(frozen=True)
class Hello:
    """What a connection is opened for."""

    job: str
    """Identifier of the job, random for each run: 32 hexadecimal digits."""
    hop: int
    """Place in the chain of the hop that is spoken to; the source is 0, its next hop 1."""
    schema: str
    """Digest of what both ends must agree on; see `msl.plan`."""
    in_flight: int
    """Most FORWARD frames without an answer that the sender will have under way."""


def read_hello(document: Mapping[str, Any]) -> Hello:
    """Check the document of a HELLO.

    Raises:
        ProtocolError: a field is missing, unknown or of the wrong type.
    """
    expected = {"job": str, "hop": int, "schema": str, "in_flight": int}
    if set(document) != set(expected):
        found = ", ".join(map(repr, document))[:_SHOWN] or "none"
        raise ProtocolError(f"a HELLO has the fields {', '.join(expected)}, not {found}")
    for name, kind in expected.items():
        if type(document[name]) is not kind:
            raise ProtocolError(f"HELLO: {name} is not of type {kind.__name__}")
    return Hello(**document)


def say_hello(connection: Connection, hello: Hello, timeout_s: float) -> list[dict[str, Any]]:
    """Open the chain from here on; blocks until the sink has welcomed it.

    Args:
        connection: to the next hop.
        hello: the HELLO that the next hop expects.
        timeout_s: deadline of the whole opening, of a peer that sends pings meanwhile as well.

    Returns:
        The stages from the next hop to the sink, as WELCOME lists them.

    Raises:
        NetworkError: refused, or no answer in time.
    """
    deadline = time.monotonic() + timeout_s
    connection.send_document(Header(Kind.HELLO), asdict(hello))
    while (frame := connection.receive()).kind is Kind.PING:
        if time.monotonic() > deadline:
            raise NetworkError(f"no WELCOME from {connection.peer} within {timeout_s:g} s, though it sends pings")
    if frame.kind is Kind.ERROR:
        reason = " ".join(str(frame.document.get("message")).split())[:_LONGEST_REASON]
        raise NetworkError(f"{connection.peer} refused the connection: {reason}")
    path = frame.document.get("path")
    if frame.kind is not Kind.WELCOME or not isinstance(path, list):
        raise ProtocolError(f"{connection.peer} answered a HELLO with {frame.kind.name}")
    return path


class Doorkeeper:
    """Accepts connections, lets in the one that says the expected HELLO, refuses and counts all others.

    Args:
        listener: listening socket; owned from here on.
        expected: the HELLO that is let in.
        peer: who is expected, for error messages.
        max_body: largest frame that is accepted, in bytes.
    """

    def __init__(self, listener: socket.socket, expected: Hello, peer: str, max_body: int) -> None:
        self.refused = 0
        """Connections that were turned away."""
        self._listener = listener
        self._expected = expected
        self._peer = peer
        self._max_body = max_body
        self._let_in: queue.SimpleQueue[tuple[Connection, socket.socket]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._taken = False
        self._pending: dict[Connection, None] = {}  # in the order of their arrival
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="msl-accept", daemon=True)
        self._thread.start()

    def admit(self, timeout_s: float) -> tuple[Connection, socket.socket]:
        """Wait for the expected connection.

        Raises:
            NetworkError: it did not come in time.
        """
        try:
            return self._let_in.get(timeout=timeout_s)
        except queue.Empty:
            raise NetworkError(
                f"{self._peer} did not connect within {timeout_s:g} s ({self.refused} other connections refused)"
            ) from None

    def close(self) -> None:
        """Stop accepting, and turn away who has not said HELLO yet."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=_HELLO_S)
        with self._lock:
            pending = list(self._pending)
        for connection in pending:
            connection.close()
        with contextlib.suppress(queue.Empty):
            while True:  # let in, but admitted by nobody
                self._let_in.get_nowait()[0].close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if self._closed.is_set():
                    return
                log.warning("accept failed: %s", error)
                time.sleep(0.1)  # e.g. out of descriptors: let some be closed
                continue
            # A stranger gets no memory but for a document, and a crowd of silent ones cannot keep the right peer
            # out: it says HELLO at once, so the one that has been silent longest goes.
            connection = Connection(sock, f"a peer at {address[0]}", MAX_DOCUMENT, _HELLO_S)
            with self._lock:
                oldest = next(iter(self._pending)) if len(self._pending) >= _MAX_PENDING else None
                if oldest is not None:
                    del self._pending[oldest]
                self._pending[connection] = None
            if oldest is not None:
                oldest.close()
            threading.Thread(target=self._examine, args=(connection, sock), name="msl-hello", daemon=True).start()

    def _examine(self, connection: Connection, sock: socket.socket) -> None:
        # A peer that drips one byte at a time would renew the socket's own timeout; this deadline is for the
        # whole HELLO.
        deadline = threading.Timer(_HELLO_S, connection.close)
        deadline.start()
        try:
            frame = connection.receive()
            if frame.kind is not Kind.HELLO:
                raise ProtocolError(f"a connection begins with HELLO, not {frame.kind.name}")
            self._check(read_hello(frame.document))
        except NetworkError as error:
            with self._lock:
                self.refused += 1
            log.warning("refused %s: %s", connection.peer, error)
            if isinstance(error, ProtocolError):
                refuse(connection, error)
            else:
                connection.close()
        else:
            connection.peer = self._peer
            connection.set_max_body(self._max_body)
            self._let_in.put((connection, sock))
        finally:
            deadline.cancel()
            with self._lock:
                self._pending.pop(connection, None)

    def _check(self, hello: Hello) -> None:
        for name, said in asdict(hello).items():
            wanted = getattr(self._expected, name)
            if said != wanted:
                shown = "another job" if name == "job" else f"{name} {said!r:.{_SHOWN}}, expected {wanted!r}"
                raise ProtocolError(f"the HELLO is for {shown}")
        with self._lock:
            if self._taken:
                raise ProtocolError("this stage already has its connection")
            self._taken = True
