"""Which flows and paths of a proxy are forgotten, and when.

The kernel program learns flows; this process deletes them: when their connection has ended or has no socket on this
host any more. A deleted flow that was alive after all is learnt again from its next forward packet.
"""

from __future__ import annotations

import ctypes
import socket
import time
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

from pyroute2 import DiagSocket

from msl.net.sfc import layout
from msl.net.sfc.maps import Map
from msl.net.sfc.proxy import Proxy

_ENDED_S = 2.0
"""A flow whose connection was closed or reset goes after so long without a packet."""
_IDLE_S = 10.0
"""Any other is asked after, when it has been so long without a packet."""
_NSF_FINS = 0b1111
_SINK_FINS = 1 << layout.Way.IN_FORWARD | 1 << layout.Way.OUT_BACKWARD
_DEAD_STATES = (6, 7, 10)  # TIME_WAIT, CLOSE, LISTEN

Ends = tuple[IPv6Address, int, IPv6Address, int]


@dataclass
class Sweeper:
    """Forgets what is over.

    Args:
        proxy: whose flows and paths.
    """

    proxy: Proxy
    _unused: set[int] = field(default_factory=set)
    """Paths that no flow had the last time."""

    def sweep(self) -> int:
        """Forget; returns how many flows went."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        used: set[int] = set()
        gone = 0
        sockets: set[Ends] | None = None
        for name in ("flows", "embryos"):
            table = self.proxy.table(name)
            for key, flow in table.items():
                idle_s = (now - flow.last_seen) / 1e9
                if idle_s < (_ENDED_S if _has_ended(flow) else _IDLE_S):
                    used.add(flow.path)
                    continue
                if sockets is None:
                    sockets = connected_sockets()
                if _ends(key) in sockets or _mirrored(key) in sockets:
                    used.add(flow.path)
                elif _is_idle_still(table, key, flow) and table.remove(key):
                    gone += 1
        self._forget_paths(used)
        return gone

    def _forget_paths(self, used: set[int]) -> None:
        """Delete paths that no flow has had twice in a row: a flow may be about to take one up."""
        paths = self.proxy.table("paths")
        unused = {key.value for key in paths} - used
        for number in unused & self._unused:
            paths.remove(ctypes.c_uint64(number))
        self._unused = unused - self._unused


def _is_idle_still(table: Map[Any, Any], key: layout.FlowKey, flow: layout.FlowEntry) -> bool:
    # Asking for the sockets took a while, and a client may have used its port again.
    present = table.get(key)
    return present is not None and present.last_seen == flow.last_seen


def _has_ended(flow: layout.FlowEntry) -> bool:
    fins = flow.finished & _NSF_FINS
    return bool(flow.finished & layout.FINISHED_RESET) or fins in (_NSF_FINS, _SINK_FINS)


def _ends(key: layout.FlowKey) -> Ends:
    client_port, service_port = key.ports
    return key.service.ip, service_port, key.client.ip, client_port


def _mirrored(key: layout.FlowKey) -> Ends:
    address, port, peer, peer_port = _ends(key)
    return peer, peer_port, address, port


def connected_sockets() -> set[Ends]:
    """Local and remote ends of this network namespace's TCP connections over IPv6."""
    with DiagSocket() as diag:
        found = diag.get_sock_stats(family=socket.AF_INET6)
        return {
            (IPv6Address(s["idiag_src"]), s["idiag_sport"], IPv6Address(s["idiag_dst"]), s["idiag_dport"])
            for s in found
            if s["idiag_state"] not in _DEAD_STATES
        }
