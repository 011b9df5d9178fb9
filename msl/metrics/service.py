"""A service in TensorBoard: requests per second, latency percentiles, times per hop, and traces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msl.metrics.steering import SteeringLog
from msl.metrics.tensorboard import TensorBoard
from msl.net.sfc.report import HostReport
from msl.net.trace import Trace
from msl.net.waterfall import waterfall

_WIDTH = 72


class ServiceBoard:
    """Writes the events of one service; the horizontal axis is seconds since it was ready."""

    def __init__(self, folder: Path) -> None:
        self._board = TensorBoard(folder)

    def steering(self, second: int, log: SteeringLog) -> None:
        """What a controller saw and did since the last look."""
        log.write(self._board, second)

    def figures(self, second: int, figures: Mapping[str, Any]) -> None:
        """What each hop did since the last look."""
        for name, entry in figures["hops"].items():
            for key, value in entry.items():
                if isinstance(value, (int, float)):
                    self._board.scalar(f"serve_{key}/{name}", value, second)
            self._board.scalar(f"serve_refused/{name}", sum(entry["refused"].values()), second)

    def trace(self, second: int, trace: Trace) -> None:
        """One request's way through the chain."""
        self._board.text("trace", "\n".join(waterfall(trace, _WIDTH)), second)
        for hop, network_ns in zip(trace.hops, trace.network_ns, strict=True):
            for activity in ("queue", "compute", "serialise", "socket"):
                self._board.scalar(f"trace_{activity}_ms/hop{hop.hop}", getattr(hop, f"{activity}_ns") / 1e6, second)
            self._board.scalar(f"trace_network_ms/to_hop{hop.hop}", network_ns / 1e6, second)
        self._board.scalar("trace_total_ms/client", trace.total_ns / 1e6, second)

    def host(self, second: int, report: HostReport) -> None:
        """A host of the SR domain."""
        self._board.host(second, report)

    def close(self) -> None:
        """Write everything out."""
        self._board.close()
