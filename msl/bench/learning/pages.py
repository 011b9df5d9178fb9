"""What the results are called and how they are explained; from samples to reports and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msl.bench import plots
from msl.bench.learning.sides import DIRECT, GLOO, RAY, SFC
from msl.bench.report import Report
from msl.bench.result import Ratio, Sample, values
from msl.config import Config

_SIDES = {
    DIRECT: "the chain over the fabric `direct`: plain TCP from hop to hop, as gloo has it.",
    SFC: "the same chain over the fabric `sfc`: SRv6 segment lists and transparent NSFs.",
    RAY: "the same stages as Ray actors, called in the order of 1F1B with references to what others return.",
    GLOO: "`torch.distributed.pipelining` with its `Schedule1F1B` over gloo, which connects by plain TCP between the"
    " same hosts' addresses.",
}
_PAIRS = ((DIRECT, GLOO), (SFC, GLOO), (DIRECT, RAY), (SFC, RAY), (SFC, DIRECT))
_HEADLINES = {
    "step_msl_over_gloo": "direct_over_gloo",
    "step_sfc_over_gloo": "sfc_over_gloo",
    "step_msl_over_ray": "direct_over_ray",
    "step_sfc_over_ray": "sfc_over_ray",
    "step_sfc_over_direct": "sfc_over_direct",
}
_NOT_COMPARABLE = (
    "What is not comparable, and why:",
    "* Ray's traffic goes over the addresses that Ray knows, on a testbed those of its management network: one switch,"
    " no routers, no rate limit. Ray and gloo have no steering, so that `direct` is what compares with them.",
    "* Gloo's last rank makes the batches again for their targets, which torch does not send along, at the same time as"
    " the first rank does.",
    "* Ray's steps are driven by calls from this process, whose time counts among the step's.",
    "* All stages share this machine's cores. What waits in any side sleeps; no side computes while another is"
    " measured.",
)


@dataclass(frozen=True)
class Measured:
    """What came out."""

    cases: Mapping[str, str]
    """Name of each case to how it is shown."""
    first: Sequence[Sample]
    """In the first stage."""
    driver: Sequence[Sample]
    """At the driver."""
    steered: bool
    """Whether there is the fabric `sfc`."""
    steps: int
    """That each side has trained in all."""


def reports(measured: Measured, steps: int, command: str, machine: Mapping[str, str]) -> list[Report]:
    """The reports: a step in the first stage, and at the driver."""
    sides = {side: text for side, text in _SIDES.items() if side != SFC or measured.steered}
    pairs = [(over, under) for over, under in _PAIRS if over in sides]
    return [
        Report(
            "msl",
            "A step in the first stage",
            command,
            machine,
            "step_ms",
            "Milliseconds from before the first stage makes the batch until its optimizer has stepped, by its own"
            f" clock; a value is the median of a round's {steps} steps, before which one is not counted. All of them"
            " follow one another without a pause, so that what other stages still do after the first one's step"
            " delays the next. The chain records its steps from when the batch is made; what it takes to make these"
            " batches is measured beside it, and added.",
            measured.cases,
            sides,
            measured.first,
            tuple(Ratio(f"{{case}}_{over}_over_{under}", over, under) for over, under in pairs),
            [f"The losses of all {measured.steps} steps are bit-identical on all sides."],
        ),
        Report(
            "msl",
            "The same steps at the driver",
            command,
            machine,
            "driver_step_ms",
            "Milliseconds per step from the driver's call until the optimizers of all stages have stepped: what it"
            " takes to call the stages, and on the chain to collect its reports, is spread over a round's steps, with"
            " the one that is not counted above.",
            measured.cases,
            sides,
            measured.driver,
            tuple(Ratio(f"{{case}}_driver_{over}_over_{under}", over, under) for over, under in pairs),
        ),
    ]


def headline(summary: Mapping[str, Any], case: str) -> dict[str, Any]:
    """The figures of the job's own case under their short names, as far as it was measured."""
    found = {name: f"{case}_{rest}" for name, rest in _HEADLINES.items()}
    return {name: summary[key] for name, key in found.items() if key in summary}


def setting(config: Config, steered: bool) -> str:
    """What all sides have in common: a paragraph, and what they have not."""
    fabric = (
        "one testbed, each stage on a host of its own"
        if steered
        else "the local cluster over loopback, each stage on a host of its own; the fabric `sfc` could not be had, and"
        " is left out"
    )
    text = (
        f"Optimizer steps of `{config.model.factory}` on {fabric}. All sides have the same cut, hosts, batches,"
        " micro-batches, threads and initial weights, and compute the same losses to the last bit, or the benchmark"
        " fails. The figures of the job's own batch and number of stages stand first in summary.json, those of the"
        " chain as `step_msl_...` over `direct`."
    )
    return "\n\n".join([text, _NOT_COMPARABLE[0], "\n".join(_NOT_COMPARABLE[1:])])


def plot(folder: Path, report: Report, cases: Mapping[str, str]) -> None:
    """A picture of all cases, by name and by how they are shown there."""
    groups = {
        shown: {side: values(report.samples, case, side) for side in report.sides} for case, shown in cases.items()
    }
    plots.bars(folder / "steps.png", groups, ("", "ms per step: median, p10 to p90"))
