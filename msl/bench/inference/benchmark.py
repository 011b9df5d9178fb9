"""`msl bench msi`: latency of multi-hop split inference, where it goes, and how it grows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msl.actors.cluster import Session, session
from msl.actors.network import entered_network
from msl.bench import machine, plots
from msl.bench.inference import pages
from msl.bench.inference.growth import Case, Growth, cases_of
from msl.bench.inference.growth_pages import growth_plots, growth_reports
from msl.bench.inference.latency import Latency
from msl.bench.inference.lengths import of_length, own_stages
from msl.bench.inference.pages import Measured, Record
from msl.bench.inference.sides import SFC, field_of
from msl.bench.inference.wanted import Wanted
from msl.bench.inference.where import Where
from msl.bench.several import write_several
from msl.config import Config
from msl.metrics.summary import write_json
from msl.plan import lay_out


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
    configs = of_length(config, [nsfs + 1 for nsfs in wanted.lengths], False, "msi")
    longest = configs[max(configs)]
    own = own_stages(config) - 1
    crowded = own if own in wanted.growing else max(wanted.growing, default=own)
    cases = cases_of(wanted.growing, crowded, wanted.clients) if wanted.growing else []
    growth = Growth()
    measured: list[Measured] = []
    grown: list[Case] = []

    def write(steered: bool) -> dict[str, Any]:
        done = [report for chain in measured for report in pages.reports(chain, record)]
        done += growth_reports(growth, grown, record) if grown else []
        title = f"Multi-hop split inference: {config.name}"
        document = write_several(folder, title, _setting(config, own, steered), done)
        summary = pages.headline(document, own, wanted.batches[0]) | document | pages.details(measured)
        write_json(folder / "summary.json", summary)
        pages.plot(folder, measured)
        if crowded in {case.nsfs for case in grown}:
            growth_plots(folder, growth, grown, crowded)
        return summary

    with contextlib.ExitStack() as stack:
        network = stack.enter_context(entered_network(longest, say))
        hosts, _ = lay_out(longest)
        cluster = stack.enter_context(session(longest, hosts, network, say))
        try:
            for nsfs in wanted.nsfs:
                chain = _measure(configs[nsfs + 1], nsfs, wanted, cluster, say)
                measured.append(chain)
            for nsfs in wanted.growing:
                of_these = [case for case in cases if case.nsfs == nsfs]
                growth.measure(configs[nsfs + 1], of_these, wanted.rounds, cluster, say)
                grown += of_these
        except BaseException:
            if measured or grown:
                write(network.fabric == SFC)
                say(f"what was measured before is kept in {folder}")
            raise
    return write(network.fabric == SFC)


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
