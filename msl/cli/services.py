"""What `msl status` shows of services."""

from __future__ import annotations

from collections.abc import Sequence

from msl.actors import services
from msl.actors.services import ServiceRecord
from msl.cli.console import line, table

_TITLE = "the last second of each hop, in ms: from header to answer (p50, p95, p99), queue and compute (p50)"
_TIMES = ("p50_ms", "p95_ms", "p99_ms", "queue_p50_ms", "compute_p50_ms")


def show_services(records: Sequence[ServiceRecord]) -> None:
    """Where each service is reached, and what its hops did in the last second."""
    for record in records:
        line(
            f"service {record.name!r} at [{record.address}]:{record.port}, from host {record.source}, fabric"
            f" {record.fabric}, weights of {record.checkpoint}, process {record.pid}"
        )
        hops = services.figures(record.name).get("hops", {})
        rows = []
        for name, entry in hops.items():
            times = ("-" if entry[key] is None else f"{entry[key]:.2f}" for key in _TIMES)
            refused = sum(entry["refused"].values())
            counts = (str(entry["connections"]), f"{entry['requests_per_s']:.1f}", f"{entry['samples_per_s']:.1f}")
            rows.append((name, entry["host"], *counts, *times, str(refused)))
        columns = ("hop", "host", "conns", "req/s", "smp/s", "p50", "p95", "p99", "queue", "compute", "refused")
        if rows:
            table(_TITLE, columns, rows)
