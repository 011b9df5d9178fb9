"""What moving bytes costs the machine: CPU time, and packets on the testbed's interfaces."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from msl.net import netns

_STAT = Path("/proc/stat")
# Of the thread: /proc/net is that of the process, whose first thread may be in another namespace.
_DEVICES = Path("/proc/thread-self/net/dev")
_PROTOCOLS = Path("/proc/thread-self/net/snmp")
MIB = 2**20


class Node(NamedTuple):
    """A host or a router of the testbed."""

    netns: str
    interfaces: tuple[str, ...]
    """Those that lead to the fabric."""


@dataclass(frozen=True)
class Load:
    """Counters at a moment, or what they grew by."""

    user_s: float = 0.0
    """CPU time of the machine in programs."""
    system_s: float = 0.0
    """The same in the kernel, without softirqs."""
    softirq_s: float = 0.0
    """The same in interrupts and softirqs."""
    members_s: float = 0.0
    """CPU time of the members' processes."""
    packets: int = 0
    """Packets that the fabric interfaces sent; one with segmentation offload counts once."""
    num_bytes: int = 0
    """Bytes that they sent, counted in the same way: headers once a packet."""
    drops: int = 0
    """Packets that they dropped."""
    segments: int = 0
    """TCP segments that the hosts sent, pure acknowledgements too: packets as they would be on a wire."""
    retransmitted: int = 0
    """Segments that were sent again, not among the others."""

    def __add__(self, other: Load) -> Load:
        return Load(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Load) -> Load:
        return Load(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def machine_s(self) -> float:
        """CPU time of the machine."""
        return self.user_s + self.system_s + self.softirq_s


def costs(load: Load, payload: int) -> dict[str, float]:
    """What each byte of payload cost.

    Args:
        load: what the counters grew by.
        payload: bytes that arrived at their end of the chain meanwhile.

    Returns:
        Nanoseconds of CPU time per byte: `cpu_per_byte` of the machine, `user_`, `system_` and `softirq_per_byte` that
        it consists of, `member_cpu_per_byte` of the members' processes; and `packets_per_mib`, `segments_per_mib`,
        `sent_per_byte` of the interfaces.
    """
    seconds = {
        "cpu_per_byte": load.machine_s,
        "user_per_byte": load.user_s,
        "system_per_byte": load.system_s,
        "softirq_per_byte": load.softirq_s,
        "member_cpu_per_byte": load.members_s,
    }
    return {
        **{name: 1e9 * value / payload for name, value in seconds.items()},
        "packets_per_mib": load.packets * MIB / payload,
        "segments_per_mib": load.segments * MIB / payload,
        "sent_per_byte": load.num_bytes / payload,
    }


def read_load(nodes: Sequence[Node], members_s: float) -> Load:
    """The counters as they stand.

    Args:
        nodes: hosts and routers.
        members_s: CPU time of the members so far, as they tell.
    """
    load = machine_load(_STAT.read_text()) + Load(members_s=members_s)
    for node in nodes:
        load += netns.inside(node.netns, partial(_read_node, node.interfaces))
    return load


def _read_node(interfaces: Sequence[str]) -> Load:
    return interface_load(_DEVICES.read_text(), interfaces) + tcp_load(_PROTOCOLS.read_text())


def machine_load(stat: str) -> Load:
    """CPU times from /proc/stat (proc_stat(5))."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    line = next(line for line in stat.splitlines() if line.startswith("cpu "))
    user, nice, system, _idle, _iowait, irq, softirq = (int(word) * tick_s for word in line.split()[1:8])
    return Load(user_s=user + nice, system_s=system, softirq_s=irq + softirq)


def interface_load(devices: str, interfaces: Sequence[str]) -> Load:
    """What the named interfaces have sent and dropped, from /proc/net/dev (proc_pid_net(5))."""
    load = Load()
    for line in devices.splitlines():
        name, colon, counters = line.partition(":")
        if colon and name.strip() in interfaces:
            numbers = [int(word) for word in counters.split()]
            received, sent = numbers[:8], numbers[8:]
            load += Load(packets=sent[1], num_bytes=sent[0], drops=received[3] + sent[3])
    return load


def tcp_load(protocols: str) -> Load:
    """TCP segments sent, from /proc/net/snmp (RFC 4022)."""
    names, numbers = (line.split()[1:] for line in protocols.splitlines() if line.startswith("Tcp:"))
    found: Mapping[str, str] = dict(zip(names, numbers, strict=True))
    return Load(segments=int(found["OutSegs"]), retransmitted=int(found["RetransSegs"]))
