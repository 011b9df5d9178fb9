"""Plots of a benchmark as PNG files, wide enough for a page."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msl.bench.result import Sample, spread, values
from msl.errors import ConfigError

_WIDTH_IN = 7.0
_DPI = 150


def require() -> None:
    """Check that plots can be made, before minutes are spent on measuring.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "benchmarks draw plots with matplotlib, which is not installed; scripts/setup bench does that"
        )


def curves(
    path: Path,
    samples: Sequence[Sample],
    positions: Mapping[str, float],
    labels: Mapping[str, str],
    sides: Sequence[str],
    axes: tuple[str, str],
) -> None:
    """One line a side through the medians of the cases, in a band from p10 to p90; both axes logarithmic.

    Args:
        path: the PNG file.
        samples: what was measured.
        positions: place of each case on the x axis.
        labels: how each case is shown there.
        sides: which lines.
        axes: what the x and the y axis show.
    """
    chart, plot = figure(4.2, axes)
    for side in sides:
        spreads = [spread(values(samples, case, side)) for case in positions]
        x = list(positions.values())
        (line,) = plot.plot(x, [s.median for s in spreads], marker="o", markersize=4, label=side)
        plot.fill_between(x, [s.p10 for s in spreads], [s.p90 for s in spreads], color=line.get_color(), alpha=0.15)
    plot.set_xscale("log")
    plot.set_yscale("log")
    plot.set_xticks(list(positions.values()), [labels[case] for case in positions])
    plot.minorticks_off()
    plot.yaxis.set_major_formatter("{x:g}")
    plot.legend(fontsize=8)
    save(chart, path)


def rounds(path: Path, samples: Sequence[Sample], sides: Sequence[str], axes: tuple[str, str]) -> None:
    """One line a side through its values, round by round.

    Args:
        path: the PNG file.
        samples: what was measured, all of one case.
        sides: which lines.
        axes: what the x and the y axis show.
    """
    chart, plot = figure(3.4, axes)
    for side in sides:
        own = [sample for sample in samples if sample.side == side]
        plot.plot([s.round for s in own], [s.value for s in own], marker="o", markersize=4, label=side)
    plot.set_ylim(bottom=0)
    plot.xaxis.get_major_locator().set_params(integer=True)
    plot.legend(fontsize=8)
    save(chart, path)


def bars(path: Path, groups: Mapping[str, Mapping[str, Sequence[float]]], axes: tuple[str, str]) -> None:
    """Groups of bars as high as the median, with whiskers from p10 to p90.

    Args:
        path: the PNG file.
        groups: label of each group to the values of each side; the same sides in all groups.
        axes: what the x and the y axis show.
    """
    chart, plot = figure(3.8, axes)
    sides = list(next(iter(groups.values())))
    width = 0.8 / len(sides)
    for index, side in enumerate(sides):
        spreads = [spread(group[side]) for group in groups.values()]
        x = [place + (index - (len(sides) - 1) / 2) * width for place in range(len(groups))]
        heights = [found.median for found in spreads]
        whiskers = [[s.median - s.p10 for s in spreads], [s.p90 - s.median for s in spreads]]
        plot.bar(x, heights, width * 0.92, yerr=whiskers, capsize=3, ecolor="0.3", label=side)
    plot.set_xticks(range(len(groups)), list(groups), fontsize=8)
    plot.grid(visible=False, axis="x")
    plot.set_axisbelow(True)
    plot.margins(y=0.15)  # room for the legend
    plot.legend(fontsize=8)
    save(chart, path)


def figure(height_in: float, axes: tuple[str, str]) -> tuple[Any, Any]:
    """An empty chart of so many inches height, and its plot."""
    from matplotlib.figure import Figure  # not pyplot: it would look for a display

    chart = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, layout="constrained")
    plot = chart.subplots()
    plot.set_xlabel(axes[0])
    plot.set_ylabel(axes[1])
    plot.grid(alpha=0.3)
    return chart, plot


def save(chart: Any, path: Path) -> None:
    """Write a chart into a PNG file."""
    chart.savefig(path)
