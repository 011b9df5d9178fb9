"""The section `serve` of a configuration: the trained model as a service."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from msl.config.values import Frozen, Name


class ServeConfig(Frozen):
    """A service: its chain begins at a client, so that all stages live at NSFs and the sink."""

    hosts: tuple[Name, ...] | None = None
    """Hosts of the stages in travel order; a host may stand here more than once, the source's with the fabric
    `direct` only. Default: as in training; if stage 0 lives at the source there, all stages are spread over the other
    hosts in their order."""
    max_wait_ms: Annotated[float, Field(strict=True, ge=0, le=10_000)] = 0.0
    """Latency budget of an NSF to merge requests of several clients. 0: each is computed by itself, and its outputs
    equal the unsplit model's to the last bit. Merged ones may differ in the last bits, as in any larger batch."""
    max_batch: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 64
    """Most samples that are merged; a larger request is computed by itself."""
    max_samples: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1024
    """Most samples of a request."""
    in_flight: Annotated[int, Field(strict=True, ge=1, le=4096)] = 8
    """Requests of a connection that an NSF takes in before it has answered the first; it then reads no further."""
    max_connections: Annotated[int, Field(strict=True, ge=1, le=60_000)] = 1024
    """Connections at once; further ones are refused."""
    memory_mb: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 512
    """Memory of an NSF for requests that are under way, in MiB; beyond it, clients have to wait."""
