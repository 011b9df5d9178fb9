"""A plan as plain text, for a terminal without colours, a log, and TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence

from msl.plan.layout import Member, Plan

COLUMNS = (
    "hop",
    "member",
    "host",
    "begins at",
    "threads",
    "parameters",
    "forward ms",
    "backward ms",
    "sends",
)


def rows(plan: Plan) -> list[tuple[str, ...]]:
    """One row per member, cells as in `COLUMNS`."""
    return [_row(plan, member) for member in plan.members]


def render(plan: Plan) -> str:
    """The plan as an aligned table, with a line above that sums it up."""
    return "\n".join([headline(plan), "", *_align([COLUMNS, *rows(plan)]), *path_lines(plan)])


def path_lines(plan: Plan) -> list[str]:
    """Service address and segment list of a steered chain, a line each; none with the fabric `direct`."""
    chain = plan.steered
    if chain is None:
        return []
    names = {stop.sid: f"{stop.name}@{stop.host}" for stop in chain.stops}
    segments = ", ".join(f"{sid} ({names.get(sid, 'waypoint')})" for sid in chain.segments)
    return ["", f"service  [{chain.service}]:{chain.port}, chain {chain.number}", f"segments {segments}"]


def headline(plan: Plan) -> str:
    """The plan in one line."""
    total = sum(member.parameters for member in plan.members)
    stages = sum(member.place.stage is not None for member in plan.members)
    return (
        f"{plan.name}: {stages} stages, {total:,} parameters, {len(plan.hosts)} hosts, fabric {plan.fabric},"
        f" at most {plan.in_flight} micro-batches in flight"
    )


def count_bytes(num_bytes: float) -> str:
    """Bytes in the largest fitting binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def _row(plan: Plan, member: Member) -> tuple[str, ...]:
    stage = member.place.stage
    begins = "(no stage)"
    if stage is not None:
        begins = plan.cut[stage - 1] if stage else "input"
    return (
        str(member.place.hop),
        member.place.name,
        member.place.host,
        begins,
        str(member.threads),
        f"{member.parameters:,}",
        f"{member.forward_ms:.1f}",
        f"{member.backward_ms:.1f}",
        f"{count_bytes(member.bytes_onward)}/sample" if member.bytes_onward else "-",
    )


def _align(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
