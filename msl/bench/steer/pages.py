"""What the results are called and how they are explained; from samples to reports and plots."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msl.bench.plots import figure, save
from msl.bench.report import Report
from msl.bench.result import Ratio, Sample, values
from msl.bench.steer import congestion, failover, price, scale, stall
from msl.metrics.summary import percentile

if TYPE_CHECKING:
    from msl.bench.steer.benchmark import Measured

HEADLINES = ("recovered_over_uncongested", "steps_lost", "stall_p99_ms", "failover_s", "control_on_over_off")
_PHASES = {
    congestion.BEFORE: "before",
    congestion.DURING: "during, from two seconds after its begin on",
    congestion.AFTER: "after",
}
_FAULTS = {
    "link_down": "the link of a host to the router goes down",
    "black_hole": "the router drops everything",
    "one_way": "it drops what goes to one host",
    "large_lost": "it drops packets above 1500 bytes",
}


def reports(measured: Measured, command: str, machine: Mapping[str, str]) -> list[Report]:
    """The reports of what was measured."""
    found = []
    samples = measured.samples
    if "stall" in samples:
        found.append(_stall(samples["stall"], measured, command, machine))
    if failover.PAUSE in samples:
        found += _failover(samples, command, machine)
    if measured.courses:
        found.append(_congestion(measured.courses, command, machine))
    if price.STEP in samples:
        found += _price(samples, command, machine)
    if measured.outcomes:
        found.append(_scale(measured.outcomes, command, machine))
    return found


def headline(measured: Measured, parts: Sequence[str]) -> dict[str, Any]:
    """The figures under their short names, as far as they were measured."""
    found: dict[str, Any] = {}
    if measured.courses:
        steered = [course for course in measured.courses if course.side == congestion.STEERED]
        found["recovered_over_uncongested"] = statistics.median(
            course.median_ms(congestion.DURING) / course.median_ms(congestion.BEFORE) for course in steered
        )
        wanted = len(steered[0].steps)
        found["steps_lost"] = sum(congestion.lost_steps(course, wanted) for course in measured.courses)
    if "stall" in measured.samples:
        for case in stall.RATES:
            changed = values(measured.samples["stall"], case, stall.CHANGED)
            found[f"stall_p50_ms_{case}"] = percentile(changed, 50)
            found[f"stall_p99_ms_{case}"] = percentile(changed, 99)
        found["stall_p99_ms"] = found[f"stall_p99_ms_{stall.FULL_LINKS}"]
    if failover.PAUSE in measured.samples:
        pauses = [sample.value for sample in measured.samples[failover.PAUSE]]
        found["failover_s"] = statistics.median(pauses)
        found["failover_worst_s"] = max(pauses)
    if price.STEP in measured.samples:
        by_round: dict[int, dict[str, float]] = {}
        for sample in measured.samples[price.STEP]:
            by_round.setdefault(sample.round, {})[sample.side] = sample.value
        found["control_on_over_off"] = statistics.median(both[price.ON] / both[price.OFF] for both in by_round.values())
        found["probe_bytes_per_s"] = statistics.median(s.value for s in measured.samples[price.PROBES])
    return found


def setting(measured: Measured) -> str:
    """What the parts have in common."""
    return (
        "One testbed: the job's hosts, each with a link to each of two routers (planes); all chains begin with all of"
        " their traffic on the first plane. Links have the rates that each part names. All hosts, routers and processes"
        " share this machine's cores. A controller has its default settings, and the policy `least-loaded`."
    )


def _stall(samples: list[Sample], measured: Measured, command: str, machine: Mapping[str, str]) -> Report:
    cases = {
        stall.FULL_LINKS: f"links of {stall.RATES[stall.FULL_LINKS]} Mbit/s, which the stream fills",
        stall.FULL_CORES: "links of 10 Gbit/s: the stream fills the cores",
    }
    findings = []
    for case, shown in cases.items():
        of_case = {side: values(samples, case, side) for side in (stall.CHANGED, stall.UNCHANGED)}
        told = ", ".join(
            f"{side}: p50 {percentile(found, 50):.1f}, p99 {percentile(found, 99):.1f}, most {max(found):.1f} ms"
            for side, found in of_case.items()
        )
        counted = measured.counted[case]
        findings.append(
            f"{shown}: {len(of_case[stall.CHANGED])} changes; {told}. {counted['mib']:,} MiB arrived, every byte as it"
            f" was sent; {counted['timeouts']} retransmission timeouts, {counted['resets']} resets, {counted['paws']}"
            " segments thrown away for their timestamps."
        )
    return Report(
        "steer",
        "The pause at a change of path",
        command,
        machine,
        "pause_ms",
        "A stream goes through the chain both ways at once, as fast as it can, over bare relays. All hops change from"
        " one plane to the other and back again. A value is the longest time in which nothing arrived at one of the two"
        " ends, within 150 ms after a change (`changed`), and within as long without one just before (`unchanged`).",
        cases,
        {stall.CHANGED: "after a change of path.", stall.UNCHANGED: "without one."},
        samples,
        (Ratio("{case}_changed_over_unchanged", stall.CHANGED, stall.UNCHANGED),),
        findings,
    )


def _failover(samples: Mapping[str, list[Sample]], command: str, machine: Mapping[str, str]) -> list[Report]:
    found = []
    titles = {
        failover.PAUSE: (
            "Time without progress when a plane fails",
            "A stream as above, on links of 200 Mbit/s. A value is the longest time in seconds in which nothing arrived"
            " at one of the two ends, from the fault on. Not a byte was wrong, and no connection broke.",
        ),
        failover.DETECTED: (
            "From the fault until the path has changed",
            "Seconds until every hop had the new path. The rest of the pause is TCP: its retransmission timer has been"
            " doubled meanwhile, and the connection goes on when it runs out.",
        ),
    }
    for quantity, (title, text) in titles.items():
        sides = {"steered": "with a controller of default settings."}
        found.append(Report("steer", title, command, machine, quantity, text, _FAULTS, sides, samples[quantity], ()))
    return found


def _congestion(courses: Sequence[congestion.Course], command: str, machine: Mapping[str, str]) -> Report:
    changes = [
        f"{change.at - course.congested_epoch_s:.2f} s after the begin: {change.after} ({change.reason})"
        for course in courses[:2]
        for change in course.changes
    ]
    return Report(
        "steer",
        "Training under cross-traffic",
        command,
        machine,
        "congested_step_ms",
        "Milliseconds of a training step, on links of 200 Mbit/s, before, during and after iperf3 (eight TCP"
        " connections each way between pairs of hosts) fills the first plane. A value is the median of a phase's steps;"
        " of those during the congestion, the ones that began two seconds after it or later.",
        _PHASES,
        {
            congestion.STEERED: "with a controller.",
            congestion.STATIC: "with the path that it began with.",
        },
        congestion.samples_of(courses),
        (Ratio("{case}_steered_over_static", congestion.STEERED, congestion.STATIC),),
        [
            "Both sides did each step once, in order, and their losses are equal to the last bit in all rounds.",
            *(f"In the first round, {text}." for text in changes),
        ],
    )


def _price(samples: Mapping[str, list[Sample]], command: str, machine: Mapping[str, str]) -> list[Report]:
    sides = {price.ON: "with probes, samples and a controller.", price.OFF: "without."}
    only = {price.ON: sides[price.ON]}
    all_hosts = {"all hosts": "all hosts together"}
    return [
        Report(
            "steer",
            "What control costs a training step",
            command,
            machine,
            price.STEP,
            "Milliseconds of a training step of the same chain, on links of 10 Gbit/s; a value is the median of a"
            " round's steps.",
            {"step": "a step"},
            sides,
            samples[price.STEP],
            (Ratio("{case}_on_over_off", price.ON, price.OFF),),
        ),
        Report(
            "steer",
            "Bytes of probes",
            command,
            machine,
            price.PROBES,
            "Bytes a second that the hosts send as probes, with all headers.",
            all_hosts,
            only,
            samples[price.PROBES],
            (),
        ),
        Report(
            "steer",
            "CPU time of measuring",
            command,
            machine,
            price.CPU,
            "CPU milliseconds a second of the agents' samplers.",
            all_hosts,
            only,
            samples[price.CPU],
            (),
        ),
    ]


def _scale(outcomes: Mapping[str, list[scale.Outcome]], command: str, machine: Mapping[str, str]) -> Report:
    samples = [
        Sample(seed, 0, case, "decide", ms)
        for case, of_case in outcomes.items()
        for seed, outcome in enumerate(of_case)
        for ms in (statistics.median(outcome.decision_ms),)
    ]
    cases = {
        case: f"{case.split('_')[0].removeprefix('links')} links, {case.split('_')[1].removeprefix('chains')} chains"
        for case in outcomes
    }
    findings = []
    for case, of_case in outcomes.items():
        told = scale.summary_of(of_case)
        over = told["over_optimum"]
        findings.append(
            f"{cases[case]}: a decision takes {told['decision_ms_p50']:.2f} ms (p99 {told['decision_ms_p99']:.2f}); the"
            f" fullest link goes from {told['fullest_before']:.0%} to {told['fullest_after']:.0%}"
            + (f", {over:.2f} times the optimum's" if over is not None else "")
        )
    return Report(
        "steer",
        "The decision by itself",
        command,
        machine,
        "decision_ms",
        f"Milliseconds of a decision for one chain of {scale.HOPS} hops, both ways, on generated topologies; a value is"
        " a seed's median. Chains decide one after the other, each with what the others carry, until none changes. The"
        " optimum is a linear programme's, which may split a hop's traffic over many ways.",
        cases,
        {"decide": "`msl.steering.decide`."},
        samples,
        (),
        findings,
    )


def plot_courses(path: Path, courses: Sequence[congestion.Course]) -> None:
    """Step time over time, of the first round: the congestion shaded, changes of path as lines."""
    chart, plot = figure(3.4, ("seconds since the cross-traffic began", "ms of a training step"))
    first = [course for course in courses if course.turn == courses[0].turn]
    for course in sorted(first, key=lambda course: course.side):
        x = [step.begin_s for step in course.steps]
        label = "with steering" if course.side == congestion.STEERED else "without"
        plot.plot(x, [step.wall_ms for step in course.steps], marker="o", markersize=4, label=label)
        if course.side == congestion.STEERED:
            for index, change in enumerate(course.changes):
                at = change.at - course.congested_epoch_s
                plot.axvline(at, color="0.4", linestyle="--", linewidth=1, label=None if index else "change of path")
    end = max(course.relieved_s for course in first)
    plot.axvspan(0, end, color="tab:red", alpha=0.08, label="cross-traffic (longest)")
    plot.set_ylim(bottom=0)
    plot.legend(fontsize=8)
    save(chart, path)


def plot_stalls(path: Path, samples: Sequence[Sample]) -> None:
    """Distribution of the pauses: how many are shorter."""
    chart, plot = figure(3.4, ("longest pause within 150 ms, ms", "share of windows that have less"))
    for case in stall.RATES:
        for side, style in ((stall.CHANGED, "-"), (stall.UNCHANGED, ":")):
            found = sorted(values(samples, case, side))
            share = [(index + 1) / len(found) for index in range(len(found))]
            plot.plot(found, share, style, label=f"{case.replace('_', ' ')}, {side}")
    plot.set_xscale("log")
    plot.axvline(10, color="0.5", linewidth=1)
    plot.legend(fontsize=8)
    save(chart, path)
