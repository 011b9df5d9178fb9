"""`msl bench msi`: latency of multi-hop split inference, where it goes, and how it grows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msl.actors.cluster import Session, session
from msl.actors.network import entered_network
from msl.bench import machine, plots
from msl.bench.inference import pages
from msl.bench.inference.latency import Latency
from msl.bench.inference.pages import Measured, Record
from msl.bench.inference.sides import SFC, field_of
from msl.bench.inference.where import Where
from msl.bench.lengths import of_length, own_stages
from msl.bench.several import write_several
from msl.config import Config
from msl.errors import ConfigError
from msl.metrics.summary import write_json
from msl.plan import lay_out

PARTS = ("latency", "where")
_MOST_NSFS, _MOST_SAMPLES = 16, 4096


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    parts: tuple[str, ...]
    batches: tuple[int, ...]
    """Samples of a request, in rising order."""
    nsfs: tuple[int, ...]
    """Numbers of NSFs between client and sink, in rising order."""
    rounds: int
    """How often, after one round that is not counted."""


def run(config: Config, wanted: Wanted, folder: Path, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and write the results.

    Call it before the process starts threads: the testbed's hosts are network namespaces of their own.

    Args:
        config: the job.
        wanted: what is to be measured.
        folder: for the results.
        command: how the benchmark was started, for the record.
        say: told how it goes.

    Returns:
        The summary, as written to `summary.json`.

    Raises:
        ConfigError: a length of the chain cannot be made.
        StageError: an output is not the unsplit model's to the last bit.
        MslError: what else went wrong.
    """
    plots.require()
    record = Record(command, machine.describe())
    configs = of_length(config, [nsfs + 1 for nsfs in wanted.nsfs], False, "bench-msi")
    longest = configs[max(configs)]
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(entered_network(longest, say))
        hosts, _ = lay_out(longest)
        cluster = stack.enter_context(session(longest, hosts, network, say))
        measured = [_measure(configs[nsfs + 1], nsfs, wanted, cluster, say) for nsfs in wanted.nsfs]
    own = own_stages(config) - 1
    return _write(folder, config, measured, own, record, network.fabric == SFC)


def _measure(config: Config, nsfs: int, wanted: Wanted, cluster: Session, say: Callable[[str], None]) -> Measured:
    """All rounds of a chain with so many NSFs."""
    with field_of(config, cluster) as field:
        latency = Latency(field, wanted.batches) if "latency" in wanted.parts else None
        where = Where(field, wanted.batches) if "where" in wanted.parts else None
        measured = Measured(nsfs, field.plan, wanted.batches, tuple(field.services), latency, where)
        say(f"{measured.title}: cut before {', '.join(field.plan.cut)}")
        for turn in range(wanted.rounds + 1):
            told = latency.round(turn) if latency is not None else "traced"
            if where is not None:
                where.round(turn)
            say(f"round {turn}/{wanted.rounds}{'' if turn else ' (not counted)'}: {told}")
    return measured


def _write(
    folder: Path, config: Config, measured: list[Measured], own: int, record: Record, steered: bool
) -> dict[str, Any]:
    """Write the files; returns the summary."""
    done = [report for chain in measured for report in pages.reports(chain, record)]
    title = f"Multi-hop split inference: {config.name}"
    document = write_several(folder, title, _setting(config, own, steered), done)
    batch = measured[0].batches[0]
    extra: dict[str, Any] = pages.headline(document, own, batch)
    for chain in measured:
        if chain.latency is not None:
            document[f"percentiles_ms_{chain.suffix}"] = pages.percentiles(chain.latency)
        crossing = {member.place.name: member.bytes_onward for member in chain.plan.members[:-1]}
        document[f"bytes_per_sample_{chain.suffix}"] = crossing
    summary = extra | document
    write_json(folder / "summary.json", summary)
    pages.plot(folder, measured)
    return summary


def _setting(config: Config, own: int, steered: bool) -> str:
    """What all sides have in common: a paragraph."""
    links = (
        "on one testbed, whose links "
        + ("have no rate limit" if config.testbed.rate_mbit is None else f"have {config.testbed.rate_mbit} Mbit/s")
        if steered
        else "on the local cluster over loopback; the fabric `sfc` could not be had, and is left out"
    )
    text = (
        f"The model (`{config.model.factory}`, as it is initialised) is served by k NSFs and a sink, each on a host of"
        f" its own, {links}. The client stands on the source's host, in the benchmark's own process. All sides have the"
        " same cut and hosts, and every output of every request is bit-identical to the unsplit model's. The figures"
        f" of the job's own number of stages ({own} NSFs) with the smallest batch stand first in summary.json."
    )
    return "\n\n".join([text, pages.NOT_COMPARABLE[0], "\n".join(pages.NOT_COMPARABLE[1:])])


def parse_parts(text: str) -> tuple[str, ...]:
    """The parts of a list like `latency,where`.

    Raises:
        ConfigError: there is no such part.
    """
    asked = [part.strip() for part in text.split(",")]
    for part in asked:
        if part not in PARTS:
            raise ConfigError(f"--only {text}: {part!r} is no part; there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in asked)


def parse_numbers(option: str, text: str, most: int) -> tuple[int, ...]:
    """The numbers of a list like `1,2,4`, in rising order.

    Raises:
        ConfigError: not a list of numbers from 1 to `most`.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= most for part in parts):
        raise ConfigError(f"{option} {text}: write numbers from 1 to {most}, like 1,2,4")
    return tuple(sorted({int(part) for part in parts}))


def parse_wanted(only: str, batches: str, nsfs: str, rounds: int) -> Wanted:
    """What the options of the command line ask for.

    Raises:
        ConfigError: an option cannot be read.
    """
    return Wanted(
        parse_parts(only),
        parse_numbers("--batches", batches, _MOST_SAMPLES),
        parse_numbers("--nsfs", nsfs, _MOST_NSFS),
        rounds,
    )
