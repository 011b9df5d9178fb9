"""`msl bench`: the benchmarks of docs/results.md."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from msl.cli.console import line
from msl.cli.stop import orderly_stop
from msl.cli.train import config_options
from msl.config import load_config


@click.group()
def bench() -> None:
    """Measure msl on this machine, against what it competes with.

    A benchmark lets the sides that it compares take turns, round by round in one process tree, and reports
    medians, spread, and the median of the ratios within a round. Its folder has results.csv (each sample),
    results.md, summary.json (the ratios by name), and plots.

    \b
      msl bench link
      msl bench train --config configs/resnet.yaml
      msl bench fabric --config configs/resnet.yaml
      msl bench msi --config configs/resnet.yaml
      msl bench msl --config configs/resnet.yaml
      msl bench steer --config configs/resnet.yaml

    Close what else uses the machine, and ask for more rounds where the spread is wide.
    """


def bench_options(rounds: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--rounds` and `--out`, as all benchmarks have them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option(
            "--out",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Folder for the results, empty or new.  [default: bench/NAME-TIME]",
        )(function)
        return click.option(
            "--rounds",
            type=click.IntRange(min=1),
            default=rounds,
            show_default=True,
            help="How often each side is measured; a first round more is not counted.",
        )(function)

    return decorate


@bench.command()
@bench_options(rounds=15)
@click.option(
    "--sizes",
    default="64KiB,256KiB,1MiB,4MiB,8MiB,32MiB",
    show_default=True,
    help="Sizes of the message, in KiB or MiB.",
)
def link(sizes: str, rounds: int, out: Path | None) -> None:
    """How fast one hop moves activations from process to process.

    Sends float32 tensors one way over a hop as a chain has it (link), over a bare TCP socket (raw, what a hop
    could reach at best), and between Ray actors, which is what a chain would do without hops of its own.

    summary.json has link_over_raw_4mib, link_over_ray_4mib and so on: above 1, the link is faster.
    """
    from msl.bench import link as bench_link
    from msl.bench.size import parse_sizes

    _run("link", out, lambda folder: bench_link.run(folder, parse_sizes(sizes), rounds, _command(), line))


@bench.command()
@config_options()
@bench_options(rounds=8)
@click.option(
    "--steps", type=click.IntRange(min=1), default=4, show_default=True, help="Optimizer steps of a side in a round."
)
def train(config_path: Path, overrides: tuple[str, ...], steps: int, rounds: int, out: Path | None) -> None:
    """How long a step of the chain takes, against the unsplit model.

    Trains the config's chain on its cluster, as `msl train` does, and the unsplit model on the same batches: with
    as many threads as the stages have together (at most one for each core), and with one.

    summary.json has step_chain_over_unsplit and step_chain_over_unsplit_1_thread: above 1, the chain is slower.
    The losses of chain and unsplit model are compared, too: they are equal to the last bit if each stage has one
    thread, or the benchmark fails.
    """
    config = load_config(config_path, overrides)
    from msl.bench import train as bench_train

    _run("train", out, lambda folder: bench_train.run(config, folder, rounds, steps, _command(), line))


@bench.command()
@config_options(required=False)
@bench_options(rounds=10)
@click.option(
    "--sizes",
    default="64B,1KiB,16KiB,64KiB,256KiB,1MiB,8MiB",
    show_default=True,
    help="Sizes of the round trips' messages, in B, KiB or MiB.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=4, show_default=True, help="Optimizer steps of a side in a round."
)
@click.option("--only", default="rtt,bulk,step,iperf", show_default=True, help="The parts to measure.")
def fabric(
    config_path: Path | None,
    overrides: tuple[str, ...],
    sizes: str,
    steps: int,
    only: str,
    rounds: int,
    out: Path | None,
) -> None:
    """What the fabric sfc costs, against plain TCP over the same links.

    Builds a testbed for the hosts of the config (configs/resnet.yaml by default) and measures both fabrics on it
    with the very same members: round trips through the chain's NSFs (rtt), throughput, packets and CPU time per
    byte (bulk), training steps (step), and iperf3 without NSFs as the ceiling (iperf). Links have no rate limit
    unless --set testbed.rate_mbit=N gives them one. Needs root.

    summary.json has rtt64_sfc_over_direct, bulk_sfc_over_direct, step_sfc_over_direct and so on. The losses over
    both fabrics are equal to the last bit, or the benchmark fails.
    """
    from msl.bench.size import parse_sizes

    config = load_config(config_path or Path("configs/resnet.yaml"), ("testbed.rate_mbit=null", *overrides))
    from msl.bench.fabric.benchmark import PARTS, Wanted
    from msl.bench.fabric.benchmark import run as run_fabric
    from msl.bench.fabric.order import SMALLEST
    from msl.bench.options import parse_parts

    wanted = Wanted(parse_parts(only, PARTS), tuple(parse_sizes(sizes, SMALLEST)), rounds, steps)
    _run("fabric", out, lambda folder: run_fabric(config, wanted, folder, _command(), line))


@bench.command()
@config_options()
@bench_options(rounds=5)
@click.option("--batches", default="1,2,4,8,16,32,64,128", show_default=True, help="Samples of a request.")
@click.option("--nsfs", help="NSFs between client and sink.  [default: 1,2,3,4; for growth 1,2,...,8]")
@click.option("--clients", default="1,2,4,8,16,32,64", show_default=True, help="Clients at once, for growth.")
@click.option(
    "--only", default="latency,where", show_default=True, help="The parts to measure, of latency,where,growth."
)
def msi(
    config_path: Path,
    overrides: tuple[str, ...],
    batches: str,
    nsfs: str | None,
    clients: str,
    only: str,
    rounds: int,
    out: Path | None,
) -> None:
    """How long a request to a served model takes, against Ray.

    Serves the config's model, untrained, by chains of several lengths over both fabrics at once (without root over
    direct only), and asks them, the unsplit model in one process, the same stages as plain Ray calls, and as a Ray
    Compiled Graph (latency). Traced requests show where the time goes (where). With --only growth, latency and
    throughput of the services are measured over the number of NSFs and of clients.

    summary.json has batch1_sfc_over_direct, batch1_overhead_sfc_over_ray, batch1_overhead_sfc_over_compiled and so
    on for the config's own number of stages, and the same as nsf1_batch1_sfc_over_direct ... for all. The overhead
    is what a request takes more than in the unsplit model. All outputs are equal to the unsplit model's to the last
    bit, or the benchmark fails.
    """
    config = load_config(config_path, overrides)
    from msl.bench.inference.benchmark import run as run_inference
    from msl.bench.inference.wanted import parse_wanted

    wanted = parse_wanted(only, batches, nsfs, clients, rounds)
    _run("msi", out, lambda folder: run_inference(config, wanted, folder, _command(), line))


@bench.command("msl")
@config_options()
@bench_options(rounds=5)
@click.option("--batches", default="16,32,64", show_default=True, help="Samples of a training step.")
@click.option("--stages", default="2,4", show_default=True, help="Stages that the model is cut into.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Optimizer steps of a side in a round."
)
def learning(
    config_path: Path,
    overrides: tuple[str, ...],
    batches: str,
    stages: str,
    steps: int,
    rounds: int,
    out: Path | None,
) -> None:
    """How long a training step takes, against torch's own pipeline over gloo, and against Ray.

    Trains the config's model by chains of several lengths over both fabrics (without root over direct only), as Ray
    calls, and by torch.distributed.pipelining over gloo, all in the order of 1F1B, from the same weights on the same
    batches. Each has as many micro-batches as the config's step.

    summary.json has step_msl_over_gloo (the chain over direct, as gloo is not steered), step_sfc_over_gloo,
    step_msl_over_ray for the config's own batch and number of stages, and for all stages4_batch64_direct_over_gloo
    and so on. The losses of all sides are equal to the last bit, or the benchmark fails.
    """
    config = load_config(config_path, overrides)
    from msl.bench.learning.benchmark import Wanted
    from msl.bench.learning.benchmark import run as run_learning
    from msl.bench.options import parse_numbers

    numbers = parse_numbers("--batches", batches, 65_536), parse_numbers("--stages", stages, 16)
    wanted = Wanted(*numbers, rounds, steps)
    _run("msl", out, lambda folder: run_learning(config, wanted, folder, _command(), line))


@bench.command("steer")
@config_options(required=False)
@bench_options(rounds=5)
@click.option(
    "--only",
    default="scale,stall,failover,congestion,price",
    show_default=True,
    help="The parts to measure.",
)
@click.option(
    "--changes", type=click.IntRange(min=2), default=200, show_default=True, help="Changes of the path, for stall."
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=4, show_default=True, help="Training steps in a round, for price."
)
@click.option("--links", default="10,100,1000,10000", show_default=True, help="Links of a topology, for scale.")
@click.option("--chains", default="1,10,100,1000", show_default=True, help="Chains in it, for scale.")
def steering(
    config_path: Path | None,
    overrides: tuple[str, ...],
    only: str,
    changes: int,
    steps: int,
    links: str,
    chains: str,
    rounds: int,
    out: Path | None,
) -> None:
    """What changes of path, congestion and failures do to a running chain.

    Builds a testbed for the hosts of the config (configs/resnet.yaml by default) with two planes. The pause of a full
    stream at changes of path (stall), the time without progress when a plane fails (failover), training steps under
    cross-traffic with and without steering (congestion), what the controller costs (price), and the decision alone on
    generated topologies against a linear programme (scale). Needs root, but for scale.

    summary.json has recovered_over_uncongested, steps_lost, stall_p99_ms, failover_s and control_on_over_off.
    """
    config = load_config(config_path or Path("configs/resnet.yaml"), overrides)
    from msl.bench.options import parse_numbers, parse_parts
    from msl.bench.steer.benchmark import PARTS, Wanted
    from msl.bench.steer.benchmark import run as run_steer

    sizes = parse_numbers("--links", links, 100_000), parse_numbers("--chains", chains, 10_000)
    wanted = Wanted(parse_parts(only, PARTS), rounds, changes, steps, *sizes)
    _run("steer", out, lambda folder: run_steer(config, wanted, folder, _command(), line))


def _run(name: str, out: Path | None, measure: Callable[[Path], object]) -> None:
    folder = out or Path("bench") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    from msl.bench.report import claimed

    with orderly_stop(line), claimed(folder):
        measure(folder)
    line(f"results kept in {folder}; read them in {folder / 'results.md'}")


def _command() -> str:
    """The command line, for the record."""
    return shlex.join(["msl", *sys.argv[1:]])
