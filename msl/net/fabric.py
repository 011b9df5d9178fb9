"""How an NSF gets its two sockets: the one it is reached at, and the one that leads onward.

This is all that a fabric is to the loop above it. `direct` listens at an address of the host and connects
to the configured next hop; a steering fabric gives the same two sockets by other means.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import NamedTuple, Protocol

from msl.errors import NetworkError


class Endpoint(NamedTuple):
    """A TCP address."""

    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


class Fabric(Protocol):
    """Makes the sockets of one hop."""

    def listen(self) -> socket.socket:
        """The socket at which the previous hop's connection arrives."""
        ...

    def onward(self, accepted: socket.socket | None) -> socket.socket:
        """A connected socket to the next hop.

        Args:
            accepted: the connection that is to be carried on; None at the source, where it begins.
        """
        ...

    def dial(self, accepted: socket.socket) -> socket.socket:
        """As `onward`, but does not wait: a non-blocking socket, connected when it can be written to."""
        ...


class DirectFabric:
    """Plain TCP: listens at an address of this host, connects to a configured next hop.

    Args:
        address: address of this host.
        next_hop: where `onward` connects to; None at the sink.
        connect_s: deadline of the connection attempt.
        port: where `listen` listens; 0 lets the kernel choose one.
    """

    def __init__(self, address: str, next_hop: Endpoint | None = None, connect_s: float = 20.0, port: int = 0) -> None:
        self._address = address
        self._port = port
        self._next_hop = next_hop
        self._connect_s = connect_s

    def listen(self) -> socket.socket:
        """Listen at this host's address."""
        try:
            return socket.create_server((self._address, self._port), family=_family(self._address), backlog=1024)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            hint = "something else listens there" if taken else "is it an address of this host?"
            where = Endpoint(self._address, self._port) if self._port else self._address
            raise NetworkError(f"cannot listen at {where}: {error.strerror}; {hint}") from error

    def onward(self, accepted: socket.socket | None) -> socket.socket:
        """Connect to the next hop, whatever was accepted."""
        target = self._target()
        try:
            return socket.create_connection(target, timeout=self._connect_s)
        except TimeoutError as error:
            raise NetworkError(f"no answer from {target} within {self._connect_s:g} s") from error
        except OSError as error:
            raise NetworkError(f"cannot connect to {target}: {error.strerror or error}") from error

    def dial(self, accepted: socket.socket) -> socket.socket:
        """Begin to connect to the next hop, whatever was accepted."""
        target = self._target()
        return begin_to_connect(socket.socket(_family(target.address), socket.SOCK_STREAM), target)

    def _target(self) -> Endpoint:
        if self._next_hop is None:
            raise NetworkError("the last hop of a chain has no next hop to connect to")
        return self._next_hop


def begin_to_connect(sock: socket.socket, target: tuple[str, int]) -> socket.socket:
    """Begin to connect a socket without waiting for it.

    Raises:
        NetworkError: it cannot even begin; the socket is closed.
    """
    sock.setblocking(False)
    code = sock.connect_ex(target)
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise NetworkError(f"cannot connect to {Endpoint(*target)}: {os.strerror(code)}")
    return sock


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET


def endpoint_of(listener: socket.socket) -> Endpoint:
    """The address and port at which a listener is reached."""
    address, port = listener.getsockname()[:2]
    return Endpoint(address, port)
