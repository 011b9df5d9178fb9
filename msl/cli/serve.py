"""`msl serve`: a trained model as a service."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from msl.cli.console import line, show_plan, status_line
from msl.cli.stop import orderly_stop
from msl.cli.train import config_of_run, config_options
from msl.config import Config
from msl.errors import ClusterError
from msl.plan import Plan, serving_config

_PATH = click.Path(path_type=Path)
_PLAIN_EVERY_S = 10.0
_POLL_S = 0.1


@click.command()
@config_options(required=False)
@click.option(
    "--checkpoint",
    type=_PATH,
    metavar="RUN",
    required=True,
    help="The trained run (its folder, or one of its checkpoints).",
)
@click.option("--detach", is_flag=True, help="Return as soon as the service is ready; `msl down` ends it.")
def serve(config_path: Path | None, overrides: tuple[str, ...], checkpoint: Path, detach: bool) -> None:
    """Serve a trained model over its chain of hosts.

    The sub-models come up as NSFs with the checkpoint's weights. Clients connect to the service's address from the
    source's host. It is ready when a request has gone through the whole chain, and serves until it is stopped
    (Ctrl-C, or `msl down`). Uses the run's own configuration unless --config names one.

    \b
      msl serve --checkpoint runs/RUN
      msl infer --dataset test
    """
    config = serving_config(config_of_run(config_path, overrides, checkpoint, "--checkpoint"))
    from msl.actors import services

    services.claim(config.name)
    if detach:
        _detach(config, checkpoint)
        return
    from msl.actors.network import entered_network

    view = _View()
    with orderly_stop(view.say), entered_network(config, view.say) as network:
        from msl.actors.serving import serve as run_service  # torch and Ray: after the network is entered

        run_service(config, checkpoint, view, network)


def _detach(config: Config, checkpoint: Path) -> None:
    """Start the same command in the background, and wait until it is ready."""
    from msl.actors import services

    folder = checkpoint if checkpoint.is_dir() else Path()
    log = folder / "serve.log"
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "msl", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with orderly_stop(line):
        try:
            _await_ready(config, process, log)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    record = services.find(config.name)
    assert record is not None
    line(
        f"service {record.name!r} is ready at [{record.address}]:{record.port}; 'msl down' ends it; it writes to {log}"
    )


def _await_ready(config: Config, process: subprocess.Popen[bytes], log: Path) -> None:
    from msl.actors import services

    deadline = time.monotonic() + 3 * config.timeouts.start_s
    while True:
        record = services.find(config.name)
        if record is not None and record.pid == process.pid:
            return
        if process.poll() is not None:
            last = [text for text in log.read_text(errors="replace").splitlines() if text.strip()]
            message = last[-1].removeprefix("msl: ") if last else "it wrote nothing"
            raise ClusterError(f"the service ended while it started: {message}")
        if time.monotonic() > deadline:
            raise ClusterError(f"the service is not ready after {3 * config.timeouts.start_s:g} s; see {log}")
        time.sleep(_POLL_S)


class _View:
    """Shows a service; an observer of `msl.actors.serving.serve`."""

    def __init__(self) -> None:
        self._shown_s = time.monotonic()

    def say(self, text: str) -> None:
        """A line."""
        line(text)

    def planned(self, plan: Plan) -> None:
        """Show the plan."""
        show_plan(plan)

    def ready(self, record: Any, latency_ms: float) -> None:
        """The service is there."""
        line(
            f"service {record.name!r} is ready at [{record.address}]:{record.port}, from host {record.source}"
            f" (first answer after {latency_ms:.0f} ms); Ctrl-C ends it"
        )

    def figures(self, figures: Mapping[str, Any]) -> None:
        """The last second: on a terminal in place, elsewhere a line now and then."""
        entry = next(iter(figures["hops"].values()))
        shown = figures_line(entry)
        if status_line(shown):
            return
        if entry["requests_per_s"] and time.monotonic() - self._shown_s > _PLAIN_EVERY_S:
            self._shown_s = time.monotonic()
            line(shown)


def figures_line(entry: Mapping[str, Any]) -> str:
    """The last second of a service's first hop."""
    shown = f"{entry['connections']} connections, {entry['requests_per_s']:.0f} requests/s"
    if entry["p50_ms"] is not None:
        shown += f", latency p50 {entry['p50_ms']:.1f} ms, p95 {entry['p95_ms']:.1f} ms, p99 {entry['p99_ms']:.1f} ms"
    refused = sum(entry["refused"].values())
    return shown + (f", {refused} refused" if refused else "")
