"""What a controller sees and does, for TensorBoard and the summary: loads, round trips, changes of path."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from typing import Any

from msl.metrics.tensorboard import TensorBoard
from msl.net.sfc.report import ChangeReport
from msl.steering.readings import HostReading

_EVERY_S = 1.0


class SteeringLog:
    """Takes what a controller tells, in its thread, and gives it out in another."""

    def __init__(self) -> None:
        self.changes: list[ChangeReport] = []
        self._lock = threading.Lock()
        self._readings: dict[str, HostReading] = {}
        self._fresh: list[ChangeReport] = []
        self._written_s = 0.0

    def reading(self, reading: HostReading) -> None:
        """A host has told of itself."""
        with self._lock:
            self._readings[reading.host] = reading

    def changed(self, change: ChangeReport) -> None:
        """The path has changed."""
        with self._lock:
            self.changes.append(change)
            self._fresh.append(change)

    def documents(self) -> list[dict[str, Any]]:
        """The changes, for the summary."""
        with self._lock:
            return [asdict(change) for change in self.changes]

    def write(self, board: TensorBoard, step: int) -> None:
        """Write what is new, at most once a second."""
        now = time.monotonic()
        if now - self._written_s < _EVERY_S:
            return
        self._written_s = now
        with self._lock:
            readings, self._readings = list(self._readings.values()), {}
            fresh, self._fresh = self._fresh, []
            count = len(self.changes)
        for reading in readings:
            for link in reading.links:
                name = f"{reading.host}_{'_'.join(link.routers) or link.interface}"
                board.scalar(f"link_load/{name}_out", link.out_mbit / link.rate_mbit, step)
                board.scalar(f"link_load/{name}_in", link.in_mbit / link.rate_mbit, step)
                board.scalar(f"link_queue_bytes/{name}", link.backlog_bytes, step)
                board.scalar(f"link_drops/{name}", link.drops, step)
            for probe in reading.probes:
                if not probe.full_size and probe.rtt_ms is not None:
                    way = "_".join(probe.way) or "routes"
                    board.scalar(f"way_rtt_ms/{reading.host}_{way}_{probe.peer}", probe.rtt_ms, step)
            for one in reading.sockets:
                name = f"hop{one.hop}_{'forward' if one.forward else 'backward'}"
                board.scalar(f"hop_rtt_ms/{name}", one.rtt_ms, step)
                board.scalar(f"hop_retransmitted/{name}", one.retransmitted, step)
                board.scalar(f"hop_delivery_mbit/{name}", one.delivery_mbit, step)
        for change in fresh:
            board.text("path", f"{change.after}\nbefore: {change.before}\nby {change.by}: {change.reason}", step)
        if readings or fresh:
            board.scalar("path_changes/count", count, step)
