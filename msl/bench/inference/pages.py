"""What the results are called and how they are explained; from samples to reports and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from msl.bench import plots
from msl.bench.inference.latency import Latency, case_of, overheads
from msl.bench.inference.sides import COMPILED, DIRECT, RAY, SFC, UNSPLIT
from msl.bench.inference.where import DISJOINT, Where, hop_cases
from msl.bench.report import Report, table
from msl.bench.result import Ratio, values
from msl.metrics.summary import percentile
from msl.plan import Plan, count_bytes

PERCENTS = (50, 95, 99)
SERVICES = {
    SFC: "the service over the fabric `sfc`: SRv6 segment lists and transparent NSFs; asked by `msl.Client`.",
    DIRECT: "the same service over plain TCP from hop to hop; asked by `msl.Client`.",
}
NOT_COMPARABLE = (
    "What is not comparable, and why:",
    "* Ray's traffic goes over the addresses that Ray knows, on a testbed those of its management network: one switch,"
    " no routers, no rate limit. The services' traffic goes over the testbed's links and routers. Ray has no steering.",
    "* The threads of a compiled graph wait in busy loops (Ray 2.60), two of them for each stage. It is therefore open"
    " for turns of its own only, when nothing else is measured, at the end of one round and at the beginning of the"
    " next. With fewer cores than such threads they take the cores from each other, and `compiled` says little about a"
    " machine for each host.",
    "* All hosts share this machine's cores, but a single request is at one stage at a time, so that each stage has a"
    " core for itself. `unsplit` has as many threads as one stage.",
    "* `direct`, `sfc` and `ray` are asked over what is already open; starting is not measured.",
)


@dataclass(frozen=True)
class Record:
    """What all reports have in common."""

    command: str
    machine: Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """What was measured of a chain with so many NSFs."""

    nsfs: int
    plan: Plan
    batches: tuple[int, ...]
    services: tuple[str, ...]
    """The fabrics."""
    latency: Latency | None
    where: Where | None

    @property
    def suffix(self) -> str:
        """How names of its quantities end."""
        return f"nsf{self.nsfs}"

    @property
    def title(self) -> str:
        """How it is called."""
        return f"{self.nsfs} NSF{'s' * (self.nsfs != 1)}"


def reports(measured: Measured, record: Record) -> list[Report]:
    """The reports of a chain."""
    found = _latency_reports(measured, record, measured.latency) if measured.latency else []
    return found + (_where_reports(measured, record, measured.where) if measured.where else [])


def headline(summary: Mapping[str, Any], nsfs: int, batch: int) -> dict[str, float]:
    """The figures of the job's own cut under their short names."""
    prefix = f"nsf{nsfs}_"
    wanted = f"{prefix}batch{batch}_"
    return {name.removeprefix(prefix): value for name, value in summary.items() if name.startswith(wanted)}


def details(chains: Sequence[Measured]) -> dict[str, Any]:
    """What the summary has besides the reports' values, by name."""
    found: dict[str, Any] = {}
    for chain in chains:
        if chain.latency is not None:
            found[f"percentiles_ms_{chain.suffix}"] = percentiles(chain.latency)
        crossing = {member.place.name: member.bytes_onward for member in chain.plan.members[:-1]}
        found[f"bytes_per_sample_{chain.suffix}"] = crossing
    return found


def percentiles(latency: Latency) -> dict[str, dict[str, dict[str, float | None]]]:
    """p50, p95 and p99 of all requests in ms, by case and side."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for case in dict.fromkeys(sample.case for sample in latency.requests):
        sides = dict.fromkeys(sample.side for sample in latency.requests if sample.case == case)
        for side in sides:
            own = values(latency.requests, case, side)
            found.setdefault(case, {})[side] = {f"p{percent}": percentile(own, percent) for percent in PERCENTS}
    return found


def plot(folder: Path, chains: Sequence[Measured]) -> None:
    """A picture of the latencies of each chain, one of the overheads, and one of where the time goes."""
    groups: dict[str, dict[str, list[float]]] = {}
    for chain in chains:
        if chain.latency is None:
            continue
        positions = {case_of(batch): float(batch) for batch in chain.batches}
        labels = {case_of(batch): str(batch) for batch in chain.batches}
        axes = (f"samples of a request ({chain.title})", "latency in ms: median, p10 to p90")
        sides = [UNSPLIT, *chain.services, RAY, COMPILED]
        name = f"latency-{chain.suffix}.png"
        plots.curves(folder / name, chain.latency.rounds, positions, labels, sides, axes)
        over = overheads(chain.latency.rounds)
        groups[chain.title] = {side: values(over, case_of(chain.batches[0]), side) for side in sides[1:]}
    if groups:
        batch = chains[0].batches[0]
        plots.bars(folder / "overhead.png", groups, ("", f"ms more than unsplit, batch {batch}: median, p10 to p90"))
    for chain in chains:
        if chain.where is not None:
            case, samples = next(iter(chain.where.times.items()))
            parts = {part: {s: values(samples, f"all_{part}", s) for s in chain.services} for part in DISJOINT}
            axes = (f"{chain.title}, batch {case.removeprefix('batch')}", "ms: median, p10 to p90")
            plots.bars(folder / f"where-{chain.suffix}.png", parts, axes)


def _latency_reports(measured: Measured, record: Record, latency: Latency) -> list[Report]:
    plan, suffix = measured.plan, measured.suffix
    cases = {case_of(batch): f"batch {batch}" for batch in measured.batches}
    sides = _sides(measured)
    path = ", ".join(f"{member.place.name} on {member.place.host}" for member in plan.members[1:])
    over = overheads(latency.rounds)
    return [
        Report(
            "msi",
            f"{measured.title}: latency",
            record.command,
            record.machine,
            f"latency_ms_{suffix}",
            f"Milliseconds from a request of so many samples until its output is there, one request at a time. A value"
            f" is the median of the requests of a round: {_requests(latency)}. Stages: {path}; cut before"
            f" {', '.join(plan.cut)}.",
            cases,
            sides,
            latency.rounds,
            _latency_ratios(measured),
        ),
        Report(
            "msi",
            f"{measured.title}: what the split adds",
            record.command,
            record.machine,
            f"overhead_ms_{suffix}",
            "Latency less the unsplit model's in the same round. Where that is a few per cent of the latency, as with"
            " large batches, it is mostly noise, and so are ratios of it.",
            cases,
            {side: text for side, text in sides.items() if side != UNSPLIT},
            over,
            _overhead_ratios(measured),
        ),
        Report(
            "msi",
            f"{measured.title}: all requests",
            record.command,
            record.machine,
            f"request_ms_{suffix}",
            "Each request of all rounds, in milliseconds.",
            cases,
            sides,
            latency.requests,
            (),
            [_percentile_table(latency, cases, list(sides))],
        ),
    ]


def _requests(latency: Latency) -> str:
    counts: dict[str, list[float]] = {}
    for sample in latency.rounds:
        counts.setdefault(sample.case.removeprefix("batch"), []).append(sample.detail["requests"])
    shown = (f"{min(n):.0f}" + (f" to {max(n):.0f}" if min(n) < max(n) else "") for n in counts.values())
    return ", ".join(f"{number} of batch {batch}" for batch, number in zip(counts, shown, strict=True))


def _percentile_table(latency: Latency, cases: Mapping[str, str], sides: Sequence[str]) -> str:
    found = percentiles(latency)
    rows = []
    for case, shown in cases.items():
        cells = (" / ".join(f"{value:.4g}" for value in found[case][side].values() if value) for side in sides)
        rows.append((shown, *cells))
    return "\n".join([f"{' / '.join(f'p{percent}' for percent in PERCENTS)}:\n", *table(("", *sides), rows)])


def _where_reports(measured: Measured, record: Record, where: Where) -> list[Report]:
    plan, suffix = measured.plan, measured.suffix
    crossing = (
        f"{one.place.name} to {following.place.name} {count_bytes(one.bytes_onward)}"
        for one, following in pairwise(plan.members)
    )
    found = [
        Report(
            "msi",
            f"{measured.title}: where the time goes, batch {batch}",
            record.command,
            record.machine,
            f"where_ms_{suffix}_{case_of(batch)}",
            "Milliseconds of traced requests, from the hops' own clocks. `network` is what the hop before waited less"
            " what the hop was busy, so it holds the kernel, the fabric and the wake-ups on both sides. Where the"
            " receiver goes on before its sender does, as it may with few cores, the sender's `socket` is as much too"
            " long as `network` is too short, below 0 even: only both together say something then.",
            hop_cases(plan),
            _service_sides(measured),
            where.times[case_of(batch)],
            (),
        )
        for batch in where.batches
    ]
    return [
        *found,
        Report(
            "msi",
            f"{measured.title}: memory",
            record.command,
            record.machine,
            f"rss_mib_{suffix}",
            "Resident MiB of each hop's process, Python, torch and Ray's worker included.",
            {member.place.name: f"{member.place.name} on {member.place.host}" for member in plan.members[1:]},
            _service_sides(measured),
            where.memory,
            (),
            [f"Payload per sample: {', '.join(crossing)}."],
        ),
    ]


def _sides(measured: Measured) -> dict[str, str]:
    threads = measured.plan.sink.threads
    count = f"{threads} thread{'s' * (threads != 1)}"
    return {
        UNSPLIT: f"the unsplit model in the client's process, {count}: as many as one stage has.",
        **_service_sides(measured),
        RAY: "the same stages as Ray actors, each called with the reference to what the one before returns, as numpy"
        " arrays.",
        COMPILED: "the same actors in a Ray Compiled Graph, opened for its turn.",
    }


def _service_sides(measured: Measured) -> dict[str, str]:
    return {side: SERVICES[side] for side in measured.services}


def _latency_ratios(measured: Measured) -> tuple[Ratio, ...]:
    name = f"{measured.suffix}_{{case}}"
    pairs = [(SFC, DIRECT)] if SFC in measured.services else []
    pairs += [(side, under) for side in measured.services for under in (UNSPLIT, RAY, COMPILED)]
    return tuple(Ratio(f"{name}_{over}_over_{under}", over, under) for over, under in pairs)


def _overhead_ratios(measured: Measured) -> tuple[Ratio, ...]:
    name = f"{measured.suffix}_{{case}}_overhead"
    pairs = [(SFC, DIRECT)] if SFC in measured.services else []
    pairs += [(side, under) for side in measured.services for under in (RAY, COMPILED)]
    return tuple(Ratio(f"{name}_{over}_over_{under}", over, under) for over, under in pairs)
