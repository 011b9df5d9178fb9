"""`msl train`, `msl plan` and `msl tensorboard`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from msl.cli.console import RunView, line, show_plan
from msl.cli.stop import orderly_stop
from msl.config import Config, load_config
from msl.errors import ConfigError, MslError

_PATH = click.Path(path_type=Path)


def config_options(required: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--config` and `--set`, as all commands that read a configuration have them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option(
            "--set",
            "overrides",
            metavar="PATH=VALUE",
            multiple=True,
            help="Override a setting, e.g. train.epochs=5 or split.cut='[layer2, layer4]'. May be repeated.",
        )(function)
        return click.option(
            "--config",
            "config_path",
            type=_PATH,
            required=required,
            envvar="MSL_CONFIG",
            help="YAML file with the job; configs/ has examples.",
        )(function)

    return decorate


@click.command()
@config_options(required=False)
@click.option("--resume", type=_PATH, metavar="RUN", help="Continue a run (its folder, or one of its checkpoints).")
@click.option("--out", type=_PATH, metavar="DIR", help="The run's folder.  [default: runs/NAME-TIME]")
@click.option("--serve", is_flag=True, help="Let `msl infer` ask the chain between its steps.")
def train(
    config_path: Path | None, overrides: tuple[str, ...], resume: Path | None, out: Path | None, serve: bool
) -> None:
    """Train a model over its chain of hosts.

    Brings up the config's cluster and takes it down again, unless `msl up` has started one. Each epoch ends
    with a test and a checkpoint. The run's folder has checkpoints, TensorBoard events and summary.json.

    With --resume a run continues bit-identically, also under another cut or another number of stages; its own
    configuration is used unless --config names one.

    With --serve the chain answers clients between two steps, with the weights of the latest complete step.
    """
    config = config_of_run(config_path, overrides, resume, "--resume")
    folder = out or resume or Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if resume is None and out is not None and (out / "checkpoints").exists():
        raise ConfigError(f"--out {out}: has a run in it already; continue it with --resume, or name another folder")
    from msl.actors.network import entered_network

    if serve:
        from msl.actors import services

        services.claim(config.name)
    view = RunView(config.train.epochs)
    with orderly_stop(view.say), entered_network(config, view.say) as network:
        from msl.actors.training import train as run_training  # torch and Ray: after the network is entered

        try:
            summary = run_training(config, folder, resume, view, network, serve)
        except MslError as error:
            raise type(error)(_with_checkpoint(str(error), folder)) from error
        finally:
            view.close()
    speed = summary["samples_per_second"]
    line(f"{speed:.1f} samples/s, step p50 {summary['step_ms']['p50']:.0f} ms, p95 {summary['step_ms']['p95']:.0f} ms")
    line(f"run kept in {folder}; look at it with: msl tensorboard {folder}")


def config_of_run(config_path: Path | None, overrides: tuple[str, ...], run: Path | None, option: str) -> Config:
    """The configuration that was named, or else that of a run or checkpoint, which `option` has named."""
    if config_path is not None:
        return load_config(config_path, overrides)
    if run is None:
        raise click.UsageError(f"Missing option '--config' (or '{option}', which brings its own).")
    if not run.is_dir():
        raise ConfigError(f"{option} {run}: no such folder")
    path = run / "config.yaml"
    if not path.exists() and (run / "training.json").exists():
        path = run.parent.parent / "config.yaml"
    return load_config(path, overrides)


def _with_checkpoint(message: str, folder: Path) -> str:
    """The message, and how the run can be continued if it has a checkpoint."""
    if any((folder / "checkpoints").glob("epoch-*")):
        return f"{message}; continue from the last checkpoint with: msl train --resume {folder}"
    return message


@click.command()
@config_options()
def plan(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Show stages, hosts, bytes across each cut, and the path of the packets; start nothing.

    Builds the model and measures one micro-batch to show, and to balance, what each stage costs.
    """
    config = load_config(config_path, overrides)
    from msl.actors.job import prepare
    from msl.actors.local import cpus_of
    from msl.actors.network import planned_chain

    chain = planned_chain(config)
    job = prepare(config)
    show_plan(job.plan(cpus_of(config, job.hosts), chain))


@click.command()
@click.argument("run", type=_PATH, default=Path("runs"))
@click.option("--port", default=6006, show_default=True, help="Port on 127.0.0.1.")
def tensorboard(run: Path, port: int) -> None:
    """Show a run, or all runs of a folder, in TensorBoard.

    The same as: tensorboard --logdir RUN
    """
    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder")
    os.execv(
        sys.executable,
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(run), "--port", str(port), "--host", "127.0.0.1"],
    )
