"""Raw packets of an SR domain: built and taken apart byte by byte, with nothing of what they test."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

ETHERTYPE_IPV6 = 0x86DD
HOP_BY_HOP, TCP, UDP, IPV6, ROUTING, FRAGMENT, ICMPV6, NONE, OPTIONS = 0, 6, 17, 41, 43, 44, 58, 59, 60
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
TOO_BIG, ECHO_REQUEST = 2, 128
ETH_LEN, IP_LEN = 14, 40
MACS = bytes.fromhex("02000000000102000000000a")

Ends = tuple[IPv6Address, int, IPv6Address, int]
"""Source and its port, destination and its port."""


def frame(packet: bytes, ethertype: int = ETHERTYPE_IPV6) -> bytes:
    """An Ethernet frame."""
    return MACS + struct.pack("!H", ethertype) + packet


def ipv6(
    source: IPv6Address,
    destination: IPv6Address,
    next_header: int,
    payload: bytes,
    *,
    version: int = 6,
    length: int | None = None,
) -> bytes:
    """An IPv6 packet; `length` makes its header lie."""
    length = len(payload) if length is None else length
    return struct.pack("!IHBB", version << 28, length, next_header, 64) + source.packed + destination.packed + payload


def srh(
    travel: Sequence[IPv6Address],
    left: int,
    *,
    tag: int = 0,
    next_header: int = IPV6,
    routing_type: int = 4,
    hdr_ext_len: int | None = None,
    last_entry: int | None = None,
    tlvs: bytes = b"",
) -> bytes:
    """A segment routing header for segments in travel order (RFC 8754 section 2); the lengths can be made to lie."""
    segments = b"".join(address.packed for address in reversed(travel))
    hdr_ext_len = (len(segments) + len(tlvs)) // 8 if hdr_ext_len is None else hdr_ext_len
    last_entry = (len(travel) - 1) & 0xFF if last_entry is None else last_entry
    fixed = struct.pack("!BBBBBBH", next_header, hdr_ext_len, routing_type, left, last_entry, 0, tag)
    return fixed + segments + tlvs


def tcp(ends: Ends, flags: int = ACK, payload: bytes = b"", sequence: int = 1, acknowledged: int = 7) -> bytes:
    """A TCP segment in IPv6."""
    source, source_port, destination, destination_port = ends
    ports = struct.pack("!HH", source_port, destination_port)
    header = ports + struct.pack("!IIBBHHH", sequence, acknowledged, 0x50, flags, 8192, 0, 0)
    return _summed(source, destination, TCP, header + payload, 16)


def udp(ends: Ends, payload: bytes = b"hello") -> bytes:
    """A UDP datagram in IPv6."""
    source, source_port, destination, destination_port = ends
    header = struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0)
    return _summed(source, destination, UDP, header + payload, 6)


def icmpv6(
    source: IPv6Address, destination: IPv6Address, body: bytes, kind: int = TOO_BIG, parameter: int = 1280
) -> bytes:
    """An ICMPv6 message; that of an error ends with the packet that it is about."""
    return _summed(source, destination, ICMPV6, struct.pack("!BBHI", kind, 0, 0, parameter) + body, 2)


def encapsulated(source: IPv6Address, travel: Sequence[IPv6Address], left: int, inner: bytes, *, tag: int = 0) -> bytes:
    """A frame with outer header and SRH, on its way to the segment that `left` points at."""
    header = srh(travel, left, tag=tag)
    return frame(ipv6(source, travel[len(travel) - 1 - left], ROUTING, header + inner))


def mirrored(ends: Ends) -> Ends:
    """The ends of the answer."""
    return ends[2], ends[3], ends[0], ends[1]


def _summed(source: IPv6Address, destination: IPv6Address, protocol: int, payload: bytes, at: int) -> bytes:
    total = ~_sum(_pseudo_header(source, destination, protocol, len(payload)) + payload) & 0xFFFF
    return ipv6(source, destination, protocol, payload[:at] + struct.pack("!H", total) + payload[at + 2 :])


def _pseudo_header(source: IPv6Address, destination: IPv6Address, protocol: int, length: int) -> bytes:
    return source.packed + destination.packed + struct.pack("!II", length, protocol)


def _sum(octets: bytes) -> int:
    """Ones' complement sum (RFC 1071)."""
    octets += bytes(len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Ip:
    """An IPv6 header and what follows it."""

    source: IPv6Address
    destination: IPv6Address
    next_header: int
    length: int
    hop_limit: int
    label: int
    payload: bytes

    @classmethod
    def parse(cls, packet: bytes) -> Ip:
        first, length, next_header, hop_limit = struct.unpack_from("!IHBB", packet)
        assert first >> 20 == 0x600, "version 6, traffic class 0"
        source, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        return cls(source, destination, next_header, length, hop_limit, first & 0xFFFFF, packet[40:])

    @property
    def checksum_is_right(self) -> bool:
        """Whether the checksum of the TCP, UDP or ICMPv6 message in it is."""
        pseudo = _pseudo_header(self.source, self.destination, self.next_header, len(self.payload))
        return _sum(pseudo + self.payload) == 0xFFFF


@dataclass(frozen=True)
class Srv6:
    """The outer headers of an encapsulated packet, and the inner packet."""

    ip: Ip
    travel: tuple[IPv6Address, ...]
    left: int
    tag: int
    inner: bytes

    @classmethod
    def parse(cls, received: bytes) -> Srv6:
        assert received[:ETH_LEN][12:] == struct.pack("!H", ETHERTYPE_IPV6)
        ip = Ip.parse(received[ETH_LEN:])
        assert ip.next_header == ROUTING
        assert ip.length == len(ip.payload)
        next_header, hdr_ext_len, kind, left, last_entry, flags, tag = struct.unpack_from("!BBBBBBH", ip.payload)
        assert (next_header, hdr_ext_len, kind, flags) == (IPV6, 2 * (last_entry + 1), 4, 0)
        end = 8 + 16 * (last_entry + 1)
        wire = [IPv6Address(ip.payload[at : at + 16]) for at in range(8, end, 16)]
        return cls(ip, tuple(reversed(wire)), left, tag, ip.payload[end:])
