"""The chains' own connections at a host, by TCP_INFO of the kernel's socket diagnosis (sock_diag(7))."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from msl.net.measure.netlink import SOCK_DIAG, dump, walk
from msl.plan.steering import ChainPlan
from msl.steering.readings import SocketReading

_BY_FAMILY = 20
_ESTABLISHED = 1
_INFO = 2
"""INET_DIAG_INFO."""
_MESSAGE_LEN = 72
"""Of struct inet_diag_msg."""
_UNACKED, _LAST_ACK, _RTT, _RETRANSMITTED, _DELIVERY = 24, 56, 68, 100, 160
"""Offsets in struct tcp_info."""


@dataclass(frozen=True)
class _End:
    """One end of a hop at this host."""

    hop: int
    service: IPv6Address
    sends_forward: bool


class Sockets:
    """Connections of one chain at one host.

    Args:
        chain: the chain.
        host: name of this host.
    """

    def __init__(self, chain: ChainPlan, host: str) -> None:
        self._ends: Mapping[IPv6Address, Sequence[_End]] = _ends(chain, host)

    def readings(self) -> tuple[SocketReading, ...]:
        """How they are; of several connections on a hop, those that stand worst come last."""
        if not self._ends:
            return ()
        request = struct.pack("=BBBxI", socket.AF_INET6, socket.IPPROTO_TCP, 1 << (_INFO - 1), 1 << _ESTABLISHED)
        found = []
        for message in dump(_BY_FAMILY, request + bytes(48), SOCK_DIAG):
            own, peer = IPv6Address(bytes(message[8:24])), IPv6Address(bytes(message[24:40]))
            at_service = own in self._ends
            for end in self._ends.get(own if at_service else peer, ()):
                if end.sends_forward != at_service:
                    info = dict(walk(message[_MESSAGE_LEN:])).get(_INFO, b"")
                    if len(info) >= _DELIVERY + 8:
                        found.append(_reading(end, info))
        return tuple(sorted(found, key=lambda reading: (reading.hop, reading.stalled_s)))


def _ends(chain: ChainPlan, host: str) -> dict[IPv6Address, list[_End]]:
    ends: dict[IPv6Address, list[_End]] = {}
    if chain.source == host:
        ends.setdefault(chain.service, []).append(_End(0, chain.service, True))
    for hop, stop in enumerate(chain.stops):
        if stop.host == host:
            ends.setdefault(stop.service, []).append(_End(hop, stop.service, False))
            if hop + 1 < len(chain.stops):
                ends[stop.service].append(_End(hop + 1, stop.service, True))
    return ends


def _reading(end: _End, info: bytes) -> SocketReading:
    (unacked,) = struct.unpack_from("=I", info, _UNACKED)
    (last_ack_ms,) = struct.unpack_from("=I", info, _LAST_ACK)
    (rtt_us,) = struct.unpack_from("=I", info, _RTT)
    (retransmitted,) = struct.unpack_from("=I", info, _RETRANSMITTED)
    (delivery,) = struct.unpack_from("=Q", info, _DELIVERY)
    stalled_s = last_ack_ms / 1e3 if unacked else 0.0
    return SocketReading(
        end.hop, end.sends_forward, rtt_us / 1e3, retransmitted, round(delivery * 8e-6, 3), unacked, stalled_s
    )
