"""What a benchmark leaves behind: results.csv, results.md and summary.json in a folder of its own."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msl.bench.result import Ratio, Sample, Spread, ratios, spread, values
from msl.errors import ConfigError
from msl.metrics.summary import write_json


@dataclass(frozen=True)
class Report:
    """A finished benchmark."""

    bench: str
    title: str
    command: str
    machine: Mapping[str, str]
    quantity: str
    """Name of the measured value with its unit, e.g. `rate_mib_s`."""
    measured: str
    """What exactly a value is: a paragraph."""
    cases: Mapping[str, str]
    """Name of each case to how it is shown."""
    sides: Mapping[str, str]
    """Name of each side to a paragraph on what it does."""
    samples: Sequence[Sample]
    ratios: Sequence[Ratio]
    findings: Sequence[str] = ()
    """What else came out: a sentence each."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A folder for a benchmark's results; a new one goes again if the benchmark fails.

    Raises:
        ConfigError: it has something in it already, or cannot be made.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be made: {error.strerror}") from error
    if occupied:
        raise ConfigError(f"--out {folder}: is not empty; name a folder that is empty or does not exist")
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # what has been written stays
                folder.rmdir()
        raise


def write(folder: Path, report: Report) -> dict[str, Any]:
    """Write all three files; returns the summary."""
    document = summary(report)
    _write_csv(folder / "results.csv", report)
    (folder / "results.md").write_text(markdown(report), encoding="utf-8")
    write_json(folder / "summary.json", document)
    return document


def summary(report: Report) -> dict[str, Any]:
    """Each ratio's median by its key, then what they rest on."""
    spreads = {
        ratio.key(case): spread(ratios(report.samples, case, ratio)) for ratio in report.ratios for case in report.cases
    }
    return {
        **{name: found.median for name, found in spreads.items()},
        "bench": report.bench,
        "command": report.command,
        "machine": dict(report.machine),
        "rounds": len({sample.round for sample in report.samples}),
        "ratio_spread": {name: {"p10": found.p10, "p90": found.p90} for name, found in spreads.items()},
        report.quantity: {
            case: {
                side: {"median": found.median, "p10": found.p10, "p90": found.p90}
                for side in report.sides
                for found in [spread(values(report.samples, case, side))]
            }
            for case in report.cases
        },
    }


def ratio_lines(report: Report) -> list[str]:
    """The medians of the ratios, a line for each case."""
    return [
        f"{shown}: "
        + ", ".join(f"{ratio} {_number(spread(ratios(report.samples, case, ratio)).median)}" for ratio in report.ratios)
        for case, shown in report.cases.items()
    ]


def markdown(report: Report) -> str:
    """The results as a page: what was measured, two tables, the machine."""
    rounds = len({sample.round for sample in report.samples})
    last = list(report.cases)[-1]
    return "\n".join(
        [
            f"# {report.title}",
            "",
            f"Made by `{report.command}`.",
            "",
            report.measured,
            "",
            *(f"* `{side}`: {text}" for side, text in report.sides.items()),
            "",
            f"## `{report.quantity}`: median (p10 to p90) of {rounds} rounds",
            "",
            *value_table(report),
            "",
            "## Ratios",
            "",
            "Median (p10 to p90) of one ratio per round. The sides take turns within a round, in an order that is"
            f" reversed from round to round. In summary.json they have names like `{report.ratios[0].key(last)}`.",
            "",
            *ratio_table(report),
            "",
            *(f"{finding}\n" for finding in report.findings),
            "## Machine",
            "",
            *table(("", ""), list(report.machine.items())),
            "",
        ]
    )


def value_table(report: Report) -> list[str]:
    """Median and spread of each side, a row for each case."""
    rows = [
        (shown, *(_cell(spread(values(report.samples, case, side))) for side in report.sides))
        for case, shown in report.cases.items()
    ]
    return table(("", *report.sides), rows)


def ratio_table(report: Report) -> list[str]:
    """Median and spread of each ratio, a row for each case."""
    rows = [
        (shown, *(_cell(spread(ratios(report.samples, case, ratio))) for ratio in report.ratios))
        for case, shown in report.cases.items()
    ]
    return table(("", *map(str, report.ratios)), rows)


def _write_csv(path: Path, report: Report) -> None:
    detail = list(report.samples[0].detail) if report.samples else []
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["round", "place", "case", "side", report.quantity, *detail])
        for one in report.samples:
            rows.writerow([one.round, one.place, one.case, one.side, one.value, *(one.detail[key] for key in detail)])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _cell(found: Spread) -> str:
    return f"{_number(found.median)} ({_range(found)})"


def _range(found: Spread) -> str:
    return f"{_number(found.p10)} to {_number(found.p90)}"


def _number(value: float) -> str:
    """Three significant digits, without an exponent; whole numbers from 100 on."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or not value else f"{value:.2e}"
