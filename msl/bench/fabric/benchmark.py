"""`msl bench fabric`: the fabric `sfc` against `direct` on one testbed, with the very same members."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msl.actors.chain import Chain, running
from msl.actors.cluster import Session, session
from msl.actors.job import Job, prepare
from msl.actors.network import Network, entered_network
from msl.bench import machine, plots
from msl.bench.calls import actors
from msl.bench.fabric import iperf
from msl.bench.fabric.chains import ends_of, steered_chains
from msl.bench.fabric.findings import findings, setting
from msl.bench.fabric.host import Side
from msl.bench.fabric.load import Node
from msl.bench.fabric.members import Members
from msl.bench.fabric.pages import plot, reports
from msl.bench.fabric.parts import BULK_BYTES, WARM_UP, Bulk, Ceiling, Measured, Part, RoundTrips, Steps
from msl.bench.report import ratio_lines
from msl.bench.several import write_several
from msl.bench.train import check_steps, long_enough
from msl.config import Config
from msl.errors import ConfigError
from msl.net.testbed import Testbed
from msl.pipeline.checkpoint import initial_state
from msl.plan import ChainPlan, lay_out

PARTS = ("rtt", "bulk", "step", "iperf")


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    parts: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes of the round trips' messages, in rising order."""
    rounds: int
    """How often, after one round that is not counted."""
    steps: int
    """Optimizer steps of a side in a round."""


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
        StageError: the losses of the two fabrics differ, or a stage failed.
        MslError: what else went wrong.
    """
    plots.require()
    if "iperf" in wanted.parts:
        iperf.require()
    found = machine.describe()
    config = _on_own_testbed(config)
    hosts, places = lay_out(config)
    measured: Measured = {}
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(entered_network(config, say))
        job = _prepare_job(config, wanted) if "step" in wanted.parts else None
        cluster = stack.enter_context(session(config, hosts, network, say))
        ways = {"sfc": places, "raw_sfc": places, "step": places, "iperf": ends_of(places)}
        steered = stack.enter_context(steered_chains(config, cluster, hosts, ways))
        started = stack.enter_context(actors())
        members = Members(cluster, started, places, _sides(steered), largest_of(wanted), config.timeouts.start_s)
        parts = _relayed(members, network, wanted)
        if job is not None:
            trained = {
                side: stack.enter_context(_training(job, cluster, chain))
                for side, chain in (("sfc", steered["step"]), ("direct", None))
            }
            parts["step"] = Steps(trained, wanted.steps, {})
        if "iperf" in wanted.parts:
            members.serve_iperf()
            plain = cluster.nodes[places[-1].host].address
            parts["iperf"] = Ceiling(members, {"srv6": str(steered["iperf"].service), "plain": plain})
        for turn in range(wanted.rounds + 1):
            told = []
            for part in parts.values():
                samples = part.round(turn)
                told.append(part.line(samples))
                for quantity, new in samples.items() if turn else ():
                    measured.setdefault(quantity, []).extend(new)
            say(f"round {turn}/{wanted.rounds}{'' if turn else ' (not counted)'}: {'; '.join(told)}")
        if job is not None:
            for chain in trained.values():
                chain.end()
    done = reports(measured, wanted.sizes, command, found, findings(measured, parts))
    title = f"What the SFC fabric costs: the chain of {config.name}"
    summary = write_several(folder, title, setting(config, places, steered["sfc"]), done)
    plot(folder, measured, wanted.sizes)
    for report in done:
        for line in ratio_lines(report) if report.ratios else ():
            say(line)
    return summary


def largest_of(wanted: Wanted) -> int:
    """Bytes of the largest message that will be sent."""
    return max(BULK_BYTES, *wanted.sizes)


def _on_own_testbed(config: Config) -> Config:
    """The configuration with the fabric `sfc`, on a testbed that no kept cluster has."""
    if config.cluster.address is not None:
        raise ConfigError(
            "cluster.address: this benchmark reads all interfaces of the testbed that it builds itself; leave it out"
        )
    # Several chains: each has the service address that follows from its number.
    return config.model_copy(
        update={
            "fabric": "sfc",
            "cluster": config.cluster.model_copy(update={"name": "bench-fabric", "network": "private"}),
            "sr": config.sr.model_copy(update={"service": None}),
        }
    )


def _prepare_job(config: Config, wanted: Wanted) -> Job:
    job = prepare(config)
    check_steps(job, wanted.steps)
    return replace(job, config=long_enough(job, wanted.rounds, WARM_UP + wanted.steps))


def _sides(steered: Mapping[str, ChainPlan]) -> dict[str, Side]:
    """The benchmark's own chains: over either fabric, with the NSF loop and with raw relays."""
    sides = (
        Side("sfc", "framed", steered["sfc"]),
        Side("direct", "framed", None),
        Side("raw_sfc", "bare", steered["raw_sfc"]),
        Side("raw_direct", "bare", None),
    )
    return {side.name: side for side in sides}


def _relayed(members: Members, network: Network, wanted: Wanted) -> dict[str, Part]:
    """The parts that send over the benchmark's own chains."""
    parts: dict[str, Part] = {}
    if "rtt" in wanted.parts:
        parts["rtt"] = RoundTrips(members, wanted.sizes)
    if "bulk" in wanted.parts:
        assert network.testbed is not None
        parts["bulk"] = Bulk(members, _nodes(network.testbed), [])
    return parts


def _nodes(testbed: Testbed) -> list[Node]:
    ports = tuple(f"h{index}" for index in range(len(testbed.hosts)))
    routers = [Node(netns, ports) for _, netns in testbed.routers]
    return [*(Node(host.netns, host.interfaces) for host in testbed.hosts), *routers]


@contextlib.contextmanager
def _training(job: Job, cluster: Session, steered: ChainPlan | None) -> Iterator[Chain]:
    """The job's chain over one of the fabrics, ready to train."""
    plan = job.plan({host: node.cpus for host, node in cluster.nodes.items()}, steered)
    with running(job.config, plan, cluster, initial_state(job.model), lambda _report: None) as chain:
        yield chain
