"""Whether SIDs lead to their hosts' proxies: datagrams that a proxy must drop, and its counters of what it dropped.

A proxy drops what comes to a SID without a segment routing header (`no_srh`), and what comes with one that no packet
follows (`not_ipv6`). So a datagram that makes the right counter of the right host rise has gone the way that the
chain's packets go. These drops are the probes' own, and no sign of trouble.
"""

from __future__ import annotations

import itertools
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from msl.errors import NetworkError
from msl.plan.addressing import Sid
from msl.plan.steering import SrRouter

DATAGRAMS = 3
_DISCARD = 9
"""Where nobody listens (RFC 863)."""
_TRIES = 2
_COUNTED_S = 1.0
_POLL_S = 0.02
_IPV6_RTHDR = 57  # linux/in6.h
_ROUTING_TYPE_SRH = 4


@dataclass(frozen=True)
class Knock:
    """A SID to be tried."""

    prober: str
    """Host that sends."""
    target: str
    """Host whose proxy must count it."""
    sid: Sid
    via: SrRouter | None = None
    """Router whose End is to be passed."""

    @property
    def reason(self) -> str:
        """Why the target's proxy drops it."""
        return "no_srh" if self.via is None else "not_ipv6"


def knock(own: IPv6Address, sid: Sid, via: Sid | None = None) -> None:
    """Send `DATAGRAMS` datagrams to a SID.

    Args:
        own: address of this host to send from, in the SR domain.
        sid: where to.
        via: SID of a router's End to pass.

    Raises:
        NetworkError: this host cannot send there.
    """
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        try:
            if via is not None:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RTHDR, _routing_header(via))
            sock.bind((str(own), 0))
            for _ in range(DATAGRAMS):
                sock.sendto(b"msl doctor", (str(sid), _DISCARD))
        except OSError as error:
            raise NetworkError(f"cannot send: {error.strerror}") from error


def _routing_header(via: Sid) -> bytes:
    """An SRH (RFC 8754 section 2) of a waypoint and the destination, which the kernel fills in."""
    hdr_ext_len, segments_left, last_entry = 4, 1, 1
    fixed = struct.pack("!BBBBBBH", 0, hdr_ext_len, _ROUTING_TYPE_SRH, segments_left, last_entry, 0, 0)
    return fixed + bytes(16) + via.packed  # segments stand in reverse


def unproven(
    knocks: Sequence[Knock],
    send: Callable[[Sequence[Knock]], Mapping[Knock, str]],
    drops: Callable[[Sequence[str]], Mapping[str, Mapping[str, int]]],
) -> dict[Knock, str]:
    """Try SIDs; those that do not lead to their proxy, each with what was found instead.

    Args:
        knocks: what is to be tried.
        send: does so (`knock` at each prober), and tells what could not be sent and why.
        drops: what the proxies of some hosts have dropped so far, by host and reason; may lack a host.
    """
    failed: dict[Knock, str] = {}
    for together in _rounds(knocks):
        left: Sequence[Knock] = together
        for _ in range(_TRIES):
            before = drops([knock.target for knock in left])
            unsent = send(left)
            left = _uncounted([knock for knock in left if knock not in unsent], before, drops)
            failed |= unsent
            if not left:
                break
        failed |= dict.fromkeys(left, "its proxy does not see what is sent")
    return failed


def _rounds(knocks: Sequence[Knock]) -> Iterator[list[Knock]]:
    """At most one for each target at a time: its counter does not tell who knocked."""
    queues: dict[str, list[Knock]] = {}
    for each in knocks:
        queues.setdefault(each.target, []).append(each)
    for together in itertools.zip_longest(*queues.values()):
        yield [each for each in together if each is not None]


def _uncounted(
    sent: Sequence[Knock],
    before: Mapping[str, Mapping[str, int]],
    drops: Callable[[Sequence[str]], Mapping[str, Mapping[str, int]]],
) -> list[Knock]:
    """Wait until all are counted; those that are not in time."""
    deadline = time.monotonic() + _COUNTED_S
    left = list(sent)
    while left:
        now = drops([each.target for each in left])
        left = [each for each in left if _rise(each, before, now) < DATAGRAMS]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return left


def _rise(each: Knock, before: Mapping[str, Mapping[str, int]], now: Mapping[str, Mapping[str, int]]) -> int:
    if each.target not in before or each.target not in now:
        return 0
    return now[each.target][each.reason] - before[each.target][each.reason]
