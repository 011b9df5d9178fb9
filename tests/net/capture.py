"""What is on the links: captured at the routers by dumpcap, dissected by tshark."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from msl.net.netns import inside
from tests.net.chain import Chains

_FIELDS = (
    "frame.interface_name",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.routing.segleft",
    "ipv6.routing.srh.addr",
    "tcp.checksum.status",
    "frame.len",
)
_GOOD = "1"
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17


@dataclass(frozen=True)
class Hop:
    """How packets of one kind look on one link."""

    link: tuple[str, str]
    """Router, and its interface."""
    source: IPv6Address
    destination: IPv6Address
    travel: tuple[IPv6Address, ...]
    """The segment list in travel order."""
    left: int
    inner: tuple[IPv6Address, IPv6Address]


@dataclass
class Capture:
    """All TCP packets with an SRH that have been seen."""

    hops: dict[Hop, int]
    """How many there were of each kind."""
    bad_checksums: int
    longest: int
    """Bytes of the longest frame."""


@contextlib.contextmanager
def capturing(chains: Chains, folder: Path) -> Iterator[Capture]:
    """Capture on all links; the result is there after the context."""
    capture = Capture({}, 0, 0)
    files = {router: folder / f"{router}.pcapng" for router, _ in chains.bed.routers}
    running = [_start(chains, router, file) for router, file in files.items()]
    try:
        yield capture
        time.sleep(0.3)  # dumpcap is handed packets in blocks
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=10)
    for router, file in files.items():
        _dissect(router, file, capture)


def _start(chains: Chains, router: str, file: Path) -> subprocess.Popen[str]:
    interfaces = [option for index in range(len(chains.domain.hosts)) for option in ("-i", f"h{index}")]
    command = ["dumpcap", "-q", "-B", "64", "-w", str(file), *interfaces]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = inside(chains.netns(router), lambda: subprocess.Popen(command, **pipes))
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("File:"):
        assert line, f"dumpcap ended with {process.wait()}"
    return process


def _dissect(router: str, file: Path, capture: Capture) -> None:
    fields = [option for field in _FIELDS for option in ("-e", field)]
    command = ["tshark", "-r", str(file), "-Y", "tcp && ipv6.routing.segleft", "-o", "tcp.check_checksum:TRUE"]
    told = subprocess.run(
        [*command, "-T", "fields", *fields], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    for line in told.splitlines():
        interface, sources, destinations, left, segments, checksum, length = line.split("\t")
        source, inner_source = map(IPv6Address, sources.split(","))
        destination, *_, inner_destination = map(IPv6Address, destinations.split(","))
        travel = tuple(IPv6Address(address) for address in reversed(segments.split(",")))
        inner = inner_source, inner_destination
        hop = Hop((router, interface), source, destination, travel, int(left), inner)
        capture.hops[hop] = capture.hops.get(hop, 0) + 1
        capture.bad_checksums += checksum != _GOOD
        capture.longest = max(capture.longest, int(length))


def send_real_checksums(chains: Chains) -> None:
    """Let hosts write checksums into what they send; between namespaces the kernel leaves that out."""
    for host in chains.bed.hosts:
        for interface in host.interfaces:
            inside(host.netns, lambda interface=interface: _without_offload(interface))  # type: ignore[misc]


def _without_offload(interface: str) -> None:
    wanted = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sQ16x", interface.encode(), ctypes.addressof(wanted))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
