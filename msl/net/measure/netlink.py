"""Dumps over netlink by hand: a library that makes an object of each attribute takes milliseconds for each dump."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from msl.errors import NetworkError

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_REQUEST_DUMP = 0x1 | 0x300
_DONE, _ERROR = 3, 2
_PATIENCE_S = 2.0
_MOST = 1 << 18
SOCK_DIAG = 4
"""NETLINK_SOCK_DIAG, which the socket module does not have."""


def dump(kind: int, body: bytes, protocol: int = socket.NETLINK_ROUTE) -> Iterator[memoryview]:
    """Ask for all objects of a kind; the messages without their headers.

    Raises:
        NetworkError: the kernel refuses.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(_PATIENCE_S)
        sock.sendto(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_DUMP, 1, 0) + body, (0, 0))
        while True:
            received = memoryview(sock.recv(_MOST))
            at = 0
            while at + _HEADER.size <= len(received):
                length, found, _, _, _ = _HEADER.unpack_from(received, at)
                message = received[at + _HEADER.size : at + length]
                if found == _DONE:
                    return
                if found == _ERROR:
                    number = -struct.unpack_from("=i", message)[0]
                    raise NetworkError(f"netlink refuses a dump: {os.strerror(number)}")
                yield message
                at += length + 3 & ~3


def walk(attributes: memoryview) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute."""
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, bytes(attributes[at + _ATTRIBUTE.size : at + length])
        at += length + 3 & ~3
