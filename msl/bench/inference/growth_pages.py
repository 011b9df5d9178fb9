"""What the results on growth are called and how they are explained; from samples to reports and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from msl.bench import plots
from msl.bench.inference.growth import CROWD, LATENCY, REQUESTS, SAMPLES, Case, Growth
from msl.bench.inference.pages import SERVICES, Record
from msl.bench.inference.sides import DIRECT, SFC
from msl.bench.report import Report
from msl.bench.result import Ratio, values

_CLIENTS = (
    "The clients are connections of up to four processes on the source's host; each asks again as soon as it has its"
    " answer. They, all hops, the routers and the kernel share this machine's cores: once these are full, more clients"
    " wait longer, and more NSFs only move work from one process to another. A turn takes 1.5 s."
)
_TITLES = {
    LATENCY: ("Growth: latency", f"Milliseconds of a request, the median of a turn. {_CLIENTS}"),
    REQUESTS: ("Growth: requests", "Requests that are answered in a second, of all clients of the same turns."),
    SAMPLES: ("Growth: samples", "The same as samples in a second."),
}
_AXES = {LATENCY: "latency in ms: median, p10 to p90", REQUESTS: "requests/s: median, p10 to p90"}
_RATIOS = {LATENCY: "{case}_latency", REQUESTS: "{case}_requests"}


def growth_reports(growth: Growth, cases: Sequence[Case], record: Record) -> list[Report]:
    """The reports: latency, requests and samples in a second."""
    sides = {
        side: text for side, text in SERVICES.items() if any(sample.side == side for sample in growth.samples[LATENCY])
    }
    both = {SFC, DIRECT} <= set(sides)
    return [
        Report(
            "msi",
            title,
            record.command,
            record.machine,
            quantity,
            text,
            {case.name: str(case) for case in cases},
            sides,
            growth.samples[quantity],
            (Ratio(f"{_RATIOS[quantity]}_sfc_over_direct", SFC, DIRECT),) if both and quantity in _RATIOS else (),
        )
        for quantity, (title, text) in _TITLES.items()
    ]


def growth_plots(folder: Path, growth: Growth, cases: Sequence[Case], own: int) -> None:
    """Pictures over the number of NSFs, and over the number of clients of the chain with `own` NSFs."""
    crowd = max(case.clients for case in cases if case.nsfs == cases[0].nsfs and case.clients <= CROWD)
    alone = {case.nsfs: case for case in cases if case.clients == 1 and case.batch == 1}
    crowded = {case.nsfs: case for case in cases if case.clients == crowd and case.batch == 1}
    clients = {case.clients: case for case in cases if case.nsfs == own and case.batch == 1}
    _bars(folder / "growth-nsfs-latency.png", growth, LATENCY, alone, "NSFs (one client, batch 1)")
    _bars(folder / "growth-nsfs-requests.png", growth, REQUESTS, crowded, f"NSFs ({crowd} clients, batch 1)")
    _bars(folder / "growth-clients-latency.png", growth, LATENCY, clients, f"clients ({own} NSFs, batch 1)")
    _bars(folder / "growth-clients-requests.png", growth, REQUESTS, clients, f"clients ({own} NSFs, batch 1)")


def _bars(path: Path, growth: Growth, quantity: str, points: Mapping[int, Case], x: str) -> None:
    samples = growth.samples[quantity]
    sides = list(dict.fromkeys(sample.side for sample in samples))
    groups = {str(n): {side: values(samples, case.name, side) for side in sides} for n, case in points.items()}
    plots.bars(path, groups, (x, _AXES[quantity]))
