"""Probes between hosts: is an address reached, and how large may a packet be that gets there in one piece?

They work on plain UDP sockets in the network namespace of the caller's thread, and need no privilege. Every wait has
a deadline.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from msl.errors import NetworkError
from msl.net.requirements import Check

IPAddress = IPv4Address | IPv6Address

_TOKEN_LEN = 8
_FIRST_TRIES, _TRIES = 3, 2
_FIRST_S = 1.0
"""Wait for the first answer: neighbour discovery repeats a lost question after a second."""
_TRY_S = 0.4
_BISECT_S = 8.0
_LARGEST_PACKET = 65_535
_LEAST_MTU = 1280  # RFC 8200 section 5
_PMTUDISC_PROBE = 3  # never fragment, and ignore what earlier packets have taught about the path


class _Family(NamedTuple):
    """What differs between the IP versions; numbers of linux/in.h and in6.h that Python's socket module lacks."""

    family: socket.AddressFamily
    level: int
    mtu_discover: int
    mtu: int
    recverr: int
    headers: int
    """Bytes of IP and UDP header."""


_FAMILIES = {
    4: _Family(socket.AF_INET, socket.IPPROTO_IP, 10, 14, 11, 28),
    6: _Family(socket.AF_INET6, socket.IPPROTO_IPV6, 23, 24, 25, 48),
}


@dataclass(frozen=True)
class Reach:
    """How far packets to an address get; sizes are of whole IP packets in bytes."""

    wanted: int
    """Size that has to get through in one piece; 0 if not even a small packet did."""
    largest: int
    """Largest size that did; 0 if none."""
    round_trip_ms: float
    reason: str
    """What the network answered instead, e.g. "No route to host"; "" if it kept silent."""

    @property
    def ok(self) -> bool:
        """Whether all that has to get through does."""
        return 0 < self.wanted <= self.largest


class Responder:
    """Answers `reach` at an address of this host, at a port that the kernel chooses, until it is closed.

    Args:
        address: one of this host's.

    Raises:
        NetworkError: it is not.
    """

    def __init__(self, address: IPAddress) -> None:
        self._sock = socket.socket(_FAMILIES[address.version].family, socket.SOCK_DGRAM)
        try:
            self._sock.bind((str(address), 0))
        except OSError as error:
            self._sock.close()
            raise NetworkError(f"cannot listen at {address}: {error.strerror}") from error
        self.port: int = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._answer, name="msl-responder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread up, though it says "not connected"
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
        self._thread.join(timeout=_FIRST_S)
        self._sock.close()

    def _answer(self) -> None:
        while True:
            try:
                question, origin = self._sock.recvfrom(_LARGEST_PACKET)
                # An empty one is what a socket that was shut down receives. Answers are no longer than questions.
                if not question:
                    return
                self._sock.sendto(question[:_TOKEN_LEN], origin)
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):
                    return


def reach(own: IPAddress, target: IPAddress, port: int, size: int | None = None) -> Reach:
    """Look how large a packet gets from here to a `Responder`, in one piece; at most about ten seconds.

    Args:
        own: address of this host to send from.
        target: the responder's address.
        port: the responder's port.
        size: of the packet that has to get through. By default what the kernel takes for the path's MTU; that is
            too much only where the network drops larger packets without telling.
    """
    kind = _FAMILIES[target.version]
    with socket.socket(kind.family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(kind.level, kind.mtu_discover, _PMTUDISC_PROBE)
        sock.setsockopt(kind.level, kind.recverr, 1)  # else routers' answers do not show
        question = _Question(sock, kind)
        begin = time.monotonic()
        try:
            sock.bind((str(own), 0))
            sock.connect((str(target), port))
        except OSError as error:
            return Reach(size or 0, 0, 0.0, error.strerror or str(error))
        small = kind.headers + _TOKEN_LEN
        if not question.passes(small, _FIRST_TRIES, _FIRST_S):
            return Reach(size or 0, 0, 0.0, question.reason)
        round_trip_ms = 1e3 * (question.answered - question.sent)
        wanted = min(size or sock.getsockopt(kind.level, kind.mtu), _LARGEST_PACKET)
        while not question.passes(wanted, _FIRST_TRIES, _TRY_S):
            known = sock.getsockopt(kind.level, kind.mtu)
            if size is None and known < wanted:
                wanted = known  # a router has told, as it should
                continue
            return Reach(wanted, _bisect(question, small, wanted, begin), round_trip_ms, question.reason)
        return Reach(wanted, wanted, round_trip_ms, "")


def _bisect(question: _Question, passes: int, fails: int, begin: float) -> int:
    """Largest size that gets through, or the best that is known when time is up."""
    while fails - passes > 1 and time.monotonic() - begin < _BISECT_S:
        middle = (passes + fails) // 2
        if question.passes(middle, _TRIES, _TRY_S):
            passes = middle
        else:
            fails = middle
    return passes


class _Question:
    """Asks a responder with packets of a certain size."""

    def __init__(self, sock: socket.socket, kind: _Family) -> None:
        self._sock = sock
        self._headers = kind.headers
        self.reason = ""
        self.sent = self.answered = 0.0

    def passes(self, size: int, tries: int, timeout_s: float) -> bool:
        """Whether a packet of that size is answered."""
        self.reason = ""
        for _ in range(tries):
            token = secrets.token_bytes(_TOKEN_LEN)
            self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # forget what an earlier packet met with
            try:
                self.sent = time.monotonic()
                self._sock.send(token.ljust(size - self._headers, b"\0"))
                if self._is_answered(token, timeout_s):
                    return True
            except OSError as error:
                self.reason = os.strerror(error.errno or 0)
        return False

    def _is_answered(self, token: bytes, timeout_s: float) -> bool:
        while (left_s := self.sent + timeout_s - time.monotonic()) > 0:
            self._sock.settimeout(left_s)
            try:
                answer = self._sock.recv(_TOKEN_LEN)
            except TimeoutError:
                return False
            if answer == token:
                self.answered = time.monotonic()
                return True
        return False


def check_reach(here: str, there: str, target: IPAddress, found: Reach, least: int = _LEAST_MTU) -> Check:
    """Judge what was found.

    Args:
        here: host that asked.
        there: host that was to answer, at `target`.
        target: its address.
        found: what was found.
        least: MTU that a host must have at least, whatever the configuration says.
    """
    need = f"packets of {found.wanted} bytes to {target}" if found.wanted else f"packets to {target}"
    if found.ok:
        return Check(need, True, f"in one piece, {found.round_trip_ms:.1f} ms", "")
    if not found.largest:
        remedy = f"on {here}, 'ip route get {target}' shows the way; set its links up, and give {there} that address"
        return Check(need, False, f"unreachable ({found.reason or 'no answer'})", remedy)
    # A router that told its MTU is remembered for ten minutes, also after it has been mended.
    remedy = f"'ip link set LINK mtu {found.wanted}' on all links between them, then 'ip route flush cache'"
    if found.largest >= least:
        remedy += f"; or in hosts: {{name: {there}, mtu: {found.largest}}}"
    silent = "" if found.reason else ", and nobody says so"
    return Check(need, False, f"at most {found.largest} bytes get through{silent}", remedy)
