"""iperf3 between two hosts: what TCP reaches over the testbed's links with no NSF between."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from typing import Any, NamedTuple

from msl.errors import ConfigError, NetworkError

_PORT = 5201
_PATIENCE_S = 20.0
"""How much longer than asked for a run may take."""
_RETRY_S = 0.1
_CONNECT_MS = 5000
_UNDER_WAY = 64 * 2**20
"""Bytes that may be between the ends when the clock stops."""


class Transfer(NamedTuple):
    """What one run of iperf3 moved."""

    num_bytes: int
    """That arrived."""
    seconds: float
    retransmits: int


def require() -> None:
    """Check that iperf3 is there.

    Raises:
        ConfigError: it is not.
    """
    if shutil.which("iperf3") is None:
        raise ConfigError("iperf3 is not installed; install it, or leave this part out: --only rtt,bulk,step")


def serve() -> subprocess.Popen[bytes]:
    """Start a server in this process's network namespace."""
    return subprocess.Popen(
        ["iperf3", "--server", "--port", str(_PORT)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def ask(address: str, seconds: float, reverse: bool) -> Transfer:
    """Run a client; a server that is not ready yet is asked again.

    Args:
        address: of the server.
        seconds: how long.
        reverse: whether the server sends.

    Raises:
        NetworkError: it failed, or took too long.
    """
    command = ["iperf3", "--client", address, "--port", str(_PORT), "--time", f"{seconds:g}", "--json"]
    command += [f"--connect-timeout={_CONNECT_MS}", *(["--reverse"] if reverse else [])]
    deadline = time.monotonic() + seconds + _PATIENCE_S
    while True:
        left_s = deadline - time.monotonic()
        try:
            run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=left_s, check=False)
        except subprocess.TimeoutExpired:
            raise NetworkError(f"iperf3 to {address} did not end within {seconds + _PATIENCE_S:g} s") from None
        try:
            return read(run.stdout)
        except NetworkError:
            if time.monotonic() + seconds + _RETRY_S > deadline:
                raise
        time.sleep(_RETRY_S)


def read(output: bytes) -> Transfer:
    """What iperf3 reported as JSON.

    Raises:
        NetworkError: it failed, or what it sent did not arrive.
    """
    try:
        report: dict[str, Any] = json.loads(output)
    except ValueError as error:
        raise NetworkError(f"iperf3 said {output[:100]!r}") from error
    if "error" in report:
        raise NetworkError(f"iperf3: {report['error']}")
    sent, received = report["end"]["sum_sent"], report["end"]["sum_received"]
    if not 0 <= sent["bytes"] - received["bytes"] <= _UNDER_WAY or not received["bytes"]:
        raise NetworkError(f"iperf3: of {sent['bytes']} bytes, {received['bytes']} arrived")
    return Transfer(received["bytes"], received["seconds"], sent["retransmits"])
