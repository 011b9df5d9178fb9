"""Keys and values of the proxy's maps, as `bpf/msl.h` declares them, and the reasons for which it drops packets."""

from __future__ import annotations

import ctypes
import socket
from enum import IntEnum
from ipaddress import IPv6Address

MAX_SEGMENTS = 16
DELIVER_MARK = 0x6D736C
NSF_PORT = 7433
FINISHED_RESET = 0x10


class Kind(IntEnum):
    """What a SID of this host stands for."""

    NSF = 1
    SINK = 2
    HEAD = 3
    TURN = 4
    PROBES = 5


class Way(IntEnum):
    """Index of the counters."""

    IN_FORWARD = 0
    OUT_FORWARD = 1
    IN_BACKWARD = 2
    OUT_BACKWARD = 3


REASONS = {
    "outside": "the outer source is not of the SR domain, or a packet for it came in over another interface",
    "truncated": "shorter than its headers say",
    "no_srh": "for a SID, but without a segment routing header",
    "bad_srh": "the lengths in the SRH contradict each other, or it has TLVs or more than 16 segments",
    "not_active": "the destination is not the segment that segments_left points at",
    "unknown_sid": "for a SID within the host's locator that nobody has",
    "sl_zero": "its path ends at an NSF",
    "sl_left": "its path goes on behind the sink or the head-end",
    "not_ipv6": "the SRH is not followed by an IPv6 packet",
    "fragment": "the inner packet is a fragment or has extension headers",
    "not_tcp": "the inner packet is neither TCP nor an ICMPv6 error about a flow",
    "service": "the inner addresses are not those of the SID's chain",
    "wrong_path": "the segment list does not pass the chain's NSFs in their order",
    "no_flow": "backward, or an ICMPv6 error, of no flow that is known",
    "no_listener": "nobody listens at the NSF's SID",
    "full": "no room for one more path",
    "outer_error": "an ICMPv6 error about an encapsulated packet: a link's MTU is too small, or there is no route",
    "no_path": "from a chain's socket, but no path has been learnt for its flow",
    "no_route": "no route to the next segment",
    "too_big": "with its encapsulation larger than the link's MTU",
    "headroom": "the kernel could not make or remove room for the headers",
    "not_probe": "for the SID at which the host's own probes end, and none of them",
}
"""Why a packet was dropped, in the order of `enum reason`, and what that means."""


class Address(ctypes.Structure):
    """An IPv6 address in network byte order."""

    _fields_ = (("octets", ctypes.c_uint8 * 16),)

    @classmethod
    def of(cls, address: IPv6Address) -> Address:
        """The address as a key or a field."""
        return cls((ctypes.c_uint8 * 16)(*address.packed))

    def __str__(self) -> str:
        return str(self.ip)

    @property
    def ip(self) -> IPv6Address:
        """The address as an object."""
        return IPv6Address(bytes(self.octets))


class Settings(ctypes.Structure):
    """`struct settings`."""

    _fields_ = (
        ("block", ctypes.c_uint64),
        ("block_mask", ctypes.c_uint64),
        ("locator", ctypes.c_uint64),
        ("is_virtual", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
    )


class SidEntry(ctypes.Structure):
    """`struct sid`."""

    _fields_ = (
        ("service", Address),
        ("local", Address),
        ("stops", Address * MAX_SEGMENTS),
        ("num_stops", ctypes.c_uint32),
        ("position", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
    )


class ServiceEntry(ctypes.Structure):
    """`struct service`."""

    _fields_ = (
        ("wire", Address),
        ("index", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("generation", ctypes.c_uint16),
        ("has_return", ctypes.c_uint16),
        ("unused", ctypes.c_uint32),
    )


class Traffic(ctypes.Structure):
    """`struct traffic`."""

    _fields_ = (("packets", ctypes.c_uint64 * 4), ("bytes", ctypes.c_uint64 * 4))


class FlowKey(ctypes.Structure):
    """`struct flow_key`; ports are in network byte order."""

    _pack_ = 1
    _fields_ = (
        ("client", Address),
        ("service", Address),
        ("client_port", ctypes.c_uint16),
        ("service_port", ctypes.c_uint16),
    )

    @classmethod
    def of(cls, client: tuple[IPv6Address, int], service: tuple[IPv6Address, int]) -> FlowKey:
        """Key of the flow between two addresses and ports."""
        ports = socket.htons(client[1]), socket.htons(service[1])
        return cls(Address.of(client[0]), Address.of(service[0]), *ports)

    @property
    def ports(self) -> tuple[int, int]:
        """Client's and service's port."""
        return socket.ntohs(self.client_port), socket.ntohs(self.service_port)


class FlowEntry(ctypes.Structure):
    """`struct flow`."""

    _fields_ = (
        ("path", ctypes.c_uint64),
        ("last_seen", ctypes.c_uint64),
        ("finished", ctypes.c_uint16),
        ("tag", ctypes.c_uint16),
        ("index", ctypes.c_uint32),
        ("packets", ctypes.c_uint64 * 4),
        ("bytes", ctypes.c_uint64 * 4),
    )

    @property
    def generation(self) -> int:
        """Of the path that it has learnt last."""
        return socket.ntohs(self.tag)


class Srh(ctypes.Structure):
    """`struct srh`: the segment routing header without its segments (RFC 8754 section 2)."""

    _fields_ = (
        ("next_header", ctypes.c_uint8),
        ("hdr_ext_len", ctypes.c_uint8),
        ("routing_type", ctypes.c_uint8),
        ("segments_left", ctypes.c_uint8),
        ("last_entry", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("tag", ctypes.c_uint16),
    )


class Arrival(ctypes.Structure):
    """`struct arrival`."""

    _fields_ = (("source", Address), ("destination", Address), ("srh", Srh), ("segments", Address * MAX_SEGMENTS))

    @property
    def travel(self) -> tuple[IPv6Address, ...]:
        """The segments in travel order."""
        return tuple(self.segments[i].ip for i in range(self.srh.last_entry, -1, -1))

    @property
    def generation(self) -> int:
        """The SRH's tag, which the head-end counts up with each change of the path."""
        return socket.ntohs(self.srh.tag)


class Outer(ctypes.Structure):
    """`struct outer`."""

    _fields_ = (("ip", ctypes.c_uint8 * 40), ("srh", Srh), ("segments", Address * MAX_SEGMENTS))


class PathEntry(ctypes.Structure):
    """`struct path`."""

    _fields_ = (
        ("arrival", Arrival),
        ("forward", Outer),
        ("backward", Outer),
        ("forward_count", ctypes.c_uint32),
        ("backward_count", ctypes.c_uint32),
    )


class Back(ctypes.Structure):
    """`struct back`."""

    _fields_ = (("outer", Outer), ("count", ctypes.c_uint32), ("unused", ctypes.c_uint32))
