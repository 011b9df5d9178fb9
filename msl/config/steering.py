"""Who chooses the path of a running chain, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from msl.config.values import Frozen


class SteeringConfig(Frozen):
    """Fabric `sfc`: how the path of the running chain is chosen."""

    policy: Literal["static", "least-loaded", "latency"] = "static"
    """`static`: the path is that of `sr.via`, and changes by hand (`msl steer`). `least-loaded`: a controller measures
    what the links carry, and leads each hop round congestion. `latency`: it takes the quickest ways. Either leaves a
    way at once that carries no packets any more."""
    sample_ms: Annotated[int, Field(strict=True, ge=20, le=10_000)] = 100
    """How often the hosts probe the ways and read their counters."""
    dead_after: Annotated[int, Field(strict=True, ge=2, le=100)] = 3
    """So many rounds of probes in a row without an answer, and a way counts as dead."""
    gain: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """A way that works is left for one that costs this share less, and for no other."""
    confirm_s: Annotated[float, Field(ge=0.0, le=3600.0)] = 0.3
    """The other way must have cost less for so long."""
    hold_s: Annotated[float, Field(ge=0.0, le=3600.0)] = 2.0
    """A hop keeps its way for so long after a change, unless it is dead."""
    record: Annotated[bool, Field(strict=True)] = False
    """Keep all that was measured and decided in the run's `telemetry.jsonl`, for `msl steer --replay`."""
