"""What is known of the hosts of an SR domain at a moment: plain values that go over the wire and into recordings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from msl.plan.paths import Way

FULL_EVERY = 2
"""Of so many rounds of probes, one has large ones, too."""


@dataclass(frozen=True)
class LinkReading:
    """An interface of a host to the SR domain; rates are over the last half second or so."""

    interface: str
    routers: tuple[str, ...]
    """Routers that are reached over it, as long as it was up."""
    up: bool
    rate_mbit: float
    """What it can carry each way."""
    in_mbit: float
    out_mbit: float
    drops: int
    """Packets that it or its queue dropped so far."""
    backlog_bytes: int
    """In its queue."""


@dataclass(frozen=True)
class ProbeReading:
    """Probes from a host to a peer over a way, and back over the same one."""

    peer: str
    way: Way
    full_size: bool
    sent: int
    answered: int
    missed: int
    """The last so many that were due are without an answer."""
    in_a_row: int
    """The last so many that were due have been answered."""
    rtt_ms: float | None
    """Smoothed; None before the first answer."""


@dataclass(frozen=True)
class SocketReading:
    """A connection of the chain at a host (TCP_INFO)."""

    hop: int
    forward: bool
    """Whether this end sends forward."""
    rtt_ms: float
    retransmitted: int
    """Segments so far."""
    delivery_mbit: float
    unacknowledged: int
    """Segments on the way."""
    stalled_s: float
    """For so long nothing of what is on the way has been acknowledged."""


@dataclass(frozen=True)
class HostReading:
    """A host."""

    host: str
    at_s: float
    """By the host's monotonic clock."""
    links: tuple[LinkReading, ...]
    probes: tuple[ProbeReading, ...]
    sockets: tuple[SocketReading, ...]
    forward_mbit: Mapping[str, float]
    """By the chain's hop (as a string, for JSON): what comes in at the hop's far end, if that is this host."""
    backward_mbit: Mapping[str, float]
    """What comes back in at the hop's near end, if that is this host."""
    defaults: Mapping[str, str | None]
    """By host: the router over whose interface the routes lead there, where no router is named."""

    def document(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def reading_from(document: Mapping[str, Any]) -> HostReading:
    """A reading as `document` wrote it.

    Raises:
        KeyError, TypeError: something is missing or foreign.
    """
    return HostReading(
        host=document["host"],
        at_s=document["at_s"],
        links=tuple(_make(LinkReading, link, routers=tuple(link["routers"])) for link in document["links"]),
        probes=tuple(_make(ProbeReading, probe, way=tuple(probe["way"])) for probe in document["probes"]),
        sockets=tuple(_make(SocketReading, one) for one in document["sockets"]),
        forward_mbit=dict(document["forward_mbit"]),
        backward_mbit=dict(document["backward_mbit"]),
        defaults=dict(document["defaults"]),
    )


def _make(kind: Any, document: Mapping[str, Any], **changed: Any) -> Any:
    known = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in document.items() if key in known} | changed)
