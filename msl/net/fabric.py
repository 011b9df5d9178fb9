"""How an NSF gets its two sockets: the one it is reached at, and the one that leads onward.

This is all that a fabric is to the loop above it. `direct` listens at an address of the host and connects
to the configured next hop; a steering fabric gives the same two sockets by other means.
"""

from __future__ import annotations

import ipaddress
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


class DirectFabric:
    """Plain TCP: listens at an address of this host, connects to a configured next hop.

    Args:
        address: address of this host; the port is chosen by the kernel.
        next_hop: where `onward` connects to; None at the sink.
        connect_s: deadline of the connection attempt.
    """

    def __init__(self, address: str, next_hop: Endpoint | None = None, connect_s: float = 20.0) -> None:
        self._address = address
        self._next_hop = next_hop
        self._connect_s = connect_s

    def listen(self) -> socket.socket:
        """Listen at a free port of this host's address."""
        family = socket.AF_INET6 if ipaddress.ip_address(self._address).version == 6 else socket.AF_INET
        try:
            return socket.create_server((self._address, 0), family=family, backlog=64)
        except OSError as error:
            raise NetworkError(
                f"cannot listen at {self._address}: {error.strerror}; is it an address of this host?"
            ) from error

    def onward(self, accepted: socket.socket | None) -> socket.socket:
        """Connect to the next hop, whatever was accepted."""
        if self._next_hop is None:
            raise NetworkError("the last hop of a chain has no next hop to connect to")
        try:
            return socket.create_connection(self._next_hop, timeout=self._connect_s)
        except TimeoutError as error:
            raise NetworkError(f"no answer from {self._next_hop} within {self._connect_s:g} s") from error
        except OSError as error:
            raise NetworkError(f"cannot connect to {self._next_hop}: {error.strerror or error}") from error


def endpoint_of(listener: socket.socket) -> Endpoint:
    """The address and port at which a listener is reached."""
    address, port = listener.getsockname()[:2]
    return Endpoint(address, port)
