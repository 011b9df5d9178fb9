"""Settings of the host's network that the SFC fabric changes, and how they are given back."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/proc/sys")

WANTED = {
    # An NSF's socket to the next hop has the client's port, so it cannot choose another one when the client uses a
    # port again while the earlier connection is still in TIME_WAIT on this host.
    "net/ipv4/tcp_tw_reuse": "1",
}

PATIENCE_MS = "50"
"""Between two solicitations of a neighbour, of which there are three.

What waits for a neighbour that is gone is thrown away only after the last of them. Until then TCP does not send it
again over another way: its own copy is still in use. By default that takes three seconds.
"""


def patience_of(interface: str) -> str:
    """The setting of an interface that has the time between two solicitations."""
    return f"net/ipv6/neigh/{interface}/retrans_time_ms"


def read(name: str) -> str:
    """Present value of a setting, e.g. `net/ipv4/tcp_tw_reuse`."""
    return " ".join((_ROOT / name).read_text().split())


def write(name: str, value: str) -> None:
    """Set it."""
    (_ROOT / name).write_text(value)
