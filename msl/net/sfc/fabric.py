"""Sockets of the SFC fabric: a transparent TCP proxy at an NSF, ordinary sockets at the two ends.

An NSF's listener takes connections to the service's address, which is not its own, and its socket to the next hop has
the client's address and port: source and sink see each other, whatever stands between them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from msl.errors import NetworkError
from msl.net.fabric import begin_to_connect
from msl.net.sfc.layout import NSF_PORT
from msl.plan.steering import ChainPlan, Stop

_IPV6_TRANSPARENT = 75  # linux/in6.h; Python's socket module lacks it
_BACKLOG = 1024


class SfcFabric:
    """Sockets of one member of a chain.

    Args:
        chain: the chain.
        hop: which member this is; 0 is the source.
        connect_s: deadline of a connection attempt.
    """

    def __init__(self, chain: ChainPlan, hop: int, connect_s: float = 20.0) -> None:
        self._chain = chain
        self._connect_s = connect_s
        self._stop: Stop | None = chain.stops[hop - 1] if hop else None

    def listen(self) -> socket.socket:
        """Listen for what the proxy hands over: an NSF at its SID, the sink at the service's address."""
        assert self._stop is not None, "the source listens nowhere"
        is_sink = self._stop is self._chain.stops[-1]
        address = (str(self._chain.service), self._chain.port) if is_sink else (str(self._stop.sid), NSF_PORT)
        listener = _transparent_socket(not is_sink)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            hint = "is another member listening there?" if error.errno == errno.EADDRINUSE else "is the chain set up?"
            raise NetworkError(f"cannot listen at [{address[0]}]:{address[1]}: {error.strerror}; {hint}") from error
        return listener

    def onward(self, accepted: socket.socket | None) -> socket.socket:
        """Connect onward: from the client's own address and port, to the address that the client connected to."""
        if accepted is None:
            target = (str(self._chain.service), self._chain.port)
            return self._connect(socket.socket(socket.AF_INET6, socket.SOCK_STREAM), target)
        return self._connect(transparent_to(accepted), accepted.getsockname()[:2])

    def dial(self, accepted: socket.socket) -> socket.socket:
        """Begin to connect as `onward` does, without waiting."""
        return begin_to_connect(transparent_to(accepted), accepted.getsockname()[:2])

    def _connect(self, sock: socket.socket, target: tuple[str, int]) -> socket.socket:
        sock.settimeout(self._connect_s)
        try:
            sock.connect(target)
        except TimeoutError as error:
            sock.close()
            raise NetworkError(f"no answer from [{target[0]}]:{target[1]} within {self._connect_s:g} s") from error
        except OSError as error:
            sock.close()
            reason = error.strerror or os.strerror(error.errno or 0)
            raise NetworkError(f"cannot connect to [{target[0]}]:{target[1]}: {reason}") from error
        return sock


def transparent_to(accepted: socket.socket) -> socket.socket:
    """An unconnected socket with the address and port of an accepted connection's client.

    Raises:
        NetworkError: the process may not do so, or the port is taken by an earlier connection of the same client.
    """
    client = accepted.getpeername()[:2]
    sock = _transparent_socket(True)
    try:
        sock.bind(client)
    except OSError as error:
        sock.close()
        raise NetworkError(f"cannot take the client's address [{client[0]}]:{client[1]}: {error.strerror}") from error
    return sock


def transparent_listener(sid: str) -> socket.socket:
    """The listener of an NSF with this SID."""
    listener = _transparent_socket(True)
    with contextlib.ExitStack() as undo:
        undo.callback(listener.close)
        listener.bind((sid, NSF_PORT))
        listener.listen(1024)
        undo.pop_all()
    return listener


def _transparent_socket(transparent: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if transparent:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    except PermissionError as error:
        sock.close()
        raise NetworkError("transparent sockets need the capability CAP_NET_ADMIN or CAP_NET_RAW") from error
    return sock
