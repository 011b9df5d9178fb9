"""A benchmark of several quantities: its reports in one results.csv, results.md and summary.json."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msl.bench.report import Report, ratio_table, summary, table, value_table
from msl.metrics.summary import write_json


def write_several(folder: Path, title: str, measured: str, reports: Sequence[Report]) -> dict[str, Any]:
    """Write all three files; returns the summary.

    Args:
        folder: for the files.
        title: of the page.
        measured: what all reports have in common: a paragraph.
        reports: one for each quantity, of one benchmark.
    """
    document = _summary(reports)
    _write_csv(folder / "results.csv", reports)
    (folder / "results.md").write_text(_page(title, measured, reports), encoding="utf-8")
    write_json(folder / "summary.json", document)
    return document


def _summary(reports: Sequence[Report]) -> dict[str, Any]:
    """The reports' summaries in one; the named ratios come first."""
    documents = [summary(report) for report in reports]
    spreads = {name: found for document in documents for name, found in document["ratio_spread"].items()}
    named = {name: document[name] for document in documents for name in document["ratio_spread"]}
    rest = {key: value for document in documents for key, value in document.items() if key not in named}
    return {**named, **rest, "ratio_spread": spreads}


def _page(title: str, measured: str, reports: Sequence[Report]) -> str:
    first = reports[0]
    rounds = len({sample.round for report in reports for sample in report.samples})
    lines = [f"# {title}", "", f"Made by `{first.command}`.", "", measured, ""]
    lines += [
        f"All values are medians (p10 to p90) of {rounds} rounds; a first round is not counted. A ratio is the median"
        " (p10 to p90) of one ratio per round: the sides take turns within a round, in an order that is reversed from"
        " round to round.",
        "",
    ]
    told: dict[str, str] = {}
    for report in reports:
        lines += [f"## {report.title}", "", report.measured, ""]
        new = {side: text for side, text in report.sides.items() if told.get(side) != text}
        told |= new
        lines += [*(f"* `{side}`: {text}" for side, text in new.items()), ""] if new else []
        lines += [f"`{report.quantity}`:", "", *value_table(report), ""]
        if report.ratios:
            name = report.ratios[0].key(next(iter(report.cases)))
            lines += [f"Ratios, in summary.json under names like `{name}`:", "", *ratio_table(report), ""]
        lines += [f"{finding}\n" for finding in report.findings]
    return "\n".join([*lines, "## Machine", "", *table(("", ""), list(first.machine.items())), ""])


def _write_csv(path: Path, reports: Sequence[Report]) -> None:
    samples = [(report.quantity, sample) for report in reports for sample in report.samples]
    detail = list(dict.fromkeys(name for _, sample in samples for name in sample.detail))
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["round", "place", "quantity", "case", "side", "value", *detail])
        for quantity, one in samples:
            known = [one.detail.get(name, "") for name in detail]
            rows.writerow([one.round, one.place, quantity, one.case, one.side, one.value, *known])
