"""`msl bench steer`: what changes of path, congestion and failures do to a chain, and what control costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msl.actors.cluster import session
from msl.actors.job import Job, prepare
from msl.actors.network import entered_network
from msl.bench import machine, plots
from msl.bench.report import Report
from msl.bench.result import Sample
from msl.bench.several import write_several
from msl.bench.steer import congestion, failover, pages, price, scale, stall, traffic
from msl.bench.steer.field import Field
from msl.bench.train import check_steps, long_enough
from msl.config import Config
from msl.errors import ConfigError
from msl.metrics.summary import write_json
from msl.plan import lay_out

PARTS = ("scale", "stall", "failover", "congestion", "price")
PHASES = (8, 12, 6)
"""Optimizer steps before, during and after a congestion."""


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    parts: tuple[str, ...]
    rounds: int
    changes: int
    """Of the path, for each case of `stall`."""
    steps: int
    """Optimizer steps of a side in a round of `price`."""
    links: tuple[int, ...]
    """Of the generated topologies."""
    chains: tuple[int, ...]


@dataclass
class Measured:
    """What came out, as far as it was asked for."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """By part and quantity."""
    counted: dict[str, dict[str, int]] = field(default_factory=dict)
    """What TCP has counted, by case of `stall`."""
    courses: list[congestion.Course] = field(default_factory=list)
    outcomes: dict[str, list[scale.Outcome]] = field(default_factory=dict)
    """By case of `scale`."""


def run(config: Config, wanted: Wanted, folder: Path, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and write the results.

    Call it before the process starts threads: the testbed's hosts are network namespaces of their own.

    Args:
        config: the job, whose chain is used.
        wanted: what is to be measured.
        folder: for the results.
        command: how the benchmark was started, for the record.
        say: told how it goes.

    Returns:
        The summary, as written to `summary.json`.

    Raises:
        ConfigError: the fabric `sfc` cannot be had on this machine.
        StageError: a step was lost, repeated, or its loss was another one.
        MslError: what else went wrong.
    """
    plots.require()
    if "congestion" in wanted.parts:
        traffic.require()
    found = machine.describe()
    measured = Measured()
    if set(wanted.parts) - {"scale"}:
        _on_testbed(_on_own_testbed(config), wanted, measured, say)
    if "scale" in wanted.parts:
        _scale(wanted, measured, say)
    document = _write(folder, config, wanted, measured, command, found)
    for name in pages.HEADLINES:
        if name in document:
            say(f"{name} {document[name]:.3g}")
    return document


def _on_testbed(config: Config, wanted: Wanted, measured: Measured, say: Callable[[str], None]) -> None:
    hosts, places = lay_out(config)
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(entered_network(config, say))
        job = _prepare_job(config, wanted) if {"congestion", "price"} & set(wanted.parts) else None
        cluster = stack.enter_context(session(config, hosts, network, say))
        assert network.testbed is not None
        on = Field(config, cluster, network.testbed, hosts, places, say)
        if "stall" in wanted.parts:
            for case in stall.RATES:
                samples, counted = stall.measure(on, case, wanted.changes, 0)
                measured.samples.setdefault("stall", []).extend(samples)
                measured.counted[case] = counted
                say(f"stall, {case}: {wanted.changes} changes, {counted}")
        if "failover" in wanted.parts:
            measured.samples |= failover.measure(on, wanted.rounds)
        if "congestion" in wanted.parts:
            assert job is not None
            for turn in range(wanted.rounds):
                courses = congestion.measure(on, job, turn, PHASES)
                measured.courses += courses
                told = ", ".join(
                    f"{course.side} {course.median_ms(congestion.BEFORE):.0f} {course.median_ms(congestion.DURING):.0f}"
                    f" {course.median_ms(congestion.AFTER):.0f}"
                    for course in courses
                )
                say(f"congestion {turn + 1}/{wanted.rounds}: a step takes ms before, during, after: {told}")
        if "price" in wanted.parts:
            assert job is not None
            measured.samples |= price.measure(on, job, wanted.rounds, wanted.steps)


def _scale(wanted: Wanted, measured: Measured, say: Callable[[str], None]) -> None:
    for links in wanted.links:
        for chains in wanted.chains:
            for seed in range(3):
                case = scale.Case(links, chains, seed)
                outcome = scale.run(case, 2000 if links < 5000 else 200)
                measured.outcomes.setdefault(case.name, []).append(outcome)
            told = scale.summary_of(measured.outcomes[case.name])
            over = told["over_optimum"]
            say(
                f"scale, {links} links, {chains} chains: {told['decision_ms_p50']:.2f} ms a decision"
                + (f", fullest link {over:.2f} times the optimum's" if over is not None else "")
            )


def _write(
    folder: Path,
    config: Config,
    wanted: Wanted,
    measured: Measured,
    command: str,
    found: Mapping[str, str],
) -> dict[str, Any]:
    reports: Sequence[Report] = pages.reports(measured, command, found)
    title = f"Steering a running chain: {config.name}"
    document = write_several(folder, title, pages.setting(measured), reports)
    summary = pages.headline(measured, wanted.parts) | document
    write_json(folder / "summary.json", summary)
    if measured.courses:
        pages.plot_courses(folder / "training.png", measured.courses)
    if "stall" in measured.samples:
        pages.plot_stalls(folder / "stalls.png", measured.samples["stall"])
    return summary


def _on_own_testbed(config: Config) -> Config:
    """The configuration with the fabric `sfc`, on a testbed that no kept cluster has."""
    if config.cluster.address is not None:
        raise ConfigError("cluster.address: this benchmark breaks the testbed that it builds itself; leave it out")
    return config.model_copy(
        update={
            "fabric": "sfc",
            "cluster": config.cluster.model_copy(update={"name": "bench-steer", "network": "private"}),
            "testbed": config.testbed.model_copy(update={"planes": max(2, config.testbed.planes)}),
            "sr": config.sr.model_copy(update={"service": None, "via": None}),
        }
    )


def _prepare_job(config: Config, wanted: Wanted) -> Job:
    job = prepare(config)
    most = max(sum(PHASES) + 1, wanted.steps + 1)
    check_steps(job, wanted.steps + 1)
    return replace(job, config=long_enough(job, wanted.rounds + 1, most))
