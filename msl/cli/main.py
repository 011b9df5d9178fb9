"""The `msl` command: its group, and how an error becomes one line and an exit code."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

import msl
from msl.cli.bench import bench
from msl.cli.cluster import down, status, up
from msl.cli.console import error_line
from msl.cli.doctor import doctor
from msl.cli.infer import infer
from msl.cli.serve import serve
from msl.cli.steer import steer, topology
from msl.cli.stop import StopRequestedError
from msl.cli.train import plan, tensorboard, train
from msl.errors import MslError

_INTERRUPTED = 130


class _Group(click.Group):
    """A group that words msl's own errors, and lets the others show where they come from."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MslError as error:
            error_line(str(error))
            sys.exit(error.exit_code)
        except StopRequestedError as stop:
            error_line(f"stopped by {stop}")
            sys.exit(_INTERRUPTED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(msl.__version__, prog_name="msl")
@click.option("-v", "--verbose", is_flag=True, help="Log what msl does to standard error.")
def main(verbose: bool) -> None:
    """Train and serve a neural network that is cut into stages, over a chain of hosts.

    A configuration file says which model, where it is cut, on which hosts its stages live, and how it is
    trained. `msl plan` shows what will be done, `msl train` does it.

    \b
      msl plan --config configs/resnet.yaml
      msl train --config configs/resnet.yaml --set train.epochs=2
      msl tensorboard runs/RUN
      msl serve --checkpoint runs/RUN
      msl infer --dataset test
      msl steer runs/RUN --via r2
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(asctime)s %(name)s %(levelname)s: %(message)s"
    )


for command in (train, serve, infer, steer, topology, plan, up, status, down, tensorboard, bench, doctor):
    main.add_command(command)
