"""From what the members of a broken chain still tell to the one line that says what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msl.actors.member import Report
from msl.pipeline.fault import Fault

_CONSEQUENCES = ("NetworkError", "ProtocolError")
"""Kinds of fault that may be a consequence of another member's end."""


@dataclass(frozen=True)
class Obituary:
    """A member that is gone."""

    host: str
    stage: str
    cause: str


def diagnose(
    reports: Mapping[str, Report],
    dead: Sequence[Obituary],
    dead_hosts: Mapping[str, Sequence[str]],
    error: BaseException | None = None,
) -> str:
    """Name host, stage and step of what broke first, as far as can be told.

    Args:
        reports: of the members that still answered, by name.
        dead: members whose actor is gone.
        dead_hosts: hosts whose raylet is known to be gone, with the names of the stages on them.
        error: what the driver saw, told if nobody else knows anything.
    """
    step = max((report.step for report in reports.values()), default=0)
    for host, stages in dead_hosts.items():
        return f"host {host}, stage {' and '.join(stages)}, step {step}: the raylet of the host is gone"
    for one in dead:
        return f"host {one.host}, stage {one.stage}, step {step}: the stage died: {one.cause}"
    if fault := first_fault(reports):
        return str(fault)
    reason = " ".join(str(error).split())[:300] if error else "no member tells why"
    return f"step {step}: the chain broke: {reason}"


def first_fault(reports: Mapping[str, Report]) -> Fault | None:
    """The fault that is most likely the cause of the others."""
    faults = [report.fault for report in reports.values() if report.fault is not None]
    return min(faults, key=lambda fault: fault.kind in _CONSEQUENCES, default=None)
