"""A service from its configuration and a checkpoint: brought up, found ready, watched, and ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from msl.actors import services
from msl.actors.agents import steered_chain
from msl.actors.cluster import session
from msl.actors.controller import Watcher
from msl.actors.job import prepare
from msl.actors.network import Network
from msl.actors.resume import newest_checkpoint
from msl.actors.service_chain import ServiceChain, serving
from msl.actors.service_probe import Prober
from msl.actors.services import ServiceRecord
from msl.actors.steered import steering
from msl.config import Config
from msl.metrics.service import ServiceBoard
from msl.metrics.steering import SteeringLog
from msl.net.sfc.report import HostReport
from msl.pipeline.checkpoint import load
from msl.pipeline.serving.counters import compare
from msl.plan import Plan, lay_out

_LOOK_S = 1.0
_PROBE_S = 10.0


class Observer(Protocol):
    """Who is told how a service goes; the command line shows it."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def planned(self, plan: Plan) -> None:
        """The plan is made; nothing runs yet."""

    def ready(self, record: ServiceRecord, latency_ms: float) -> None:
        """A request has gone through the whole chain and back."""

    def figures(self, figures: Mapping[str, Any]) -> None:
        """How the service did in the last second."""


def serve(config: Config, checkpoint: Path, observer: Observer, network: Network) -> None:
    """Serve a trained model until the process is asked to stop.

    Args:
        config: the job as a service, as `serving_config` gives it.
        checkpoint: a run, or one of its checkpoints.
        observer: told how it goes.
        network: where this process stands.

    Raises:
        MslError: what went wrong, and where.
    """
    path = newest_checkpoint(checkpoint)
    job = prepare(config)
    state, progress = load(path, job.model)
    _, places = lay_out(config)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(session(config, job.hosts, network, observer.say))
        hosts: list[HostReport] = []
        steered = stack.enter_context(steered_chain(config, cluster, job.hosts, places, hosts.append))
        plan = job.plan({host: node.cpus for host, node in cluster.nodes.items()}, steered)
        observer.planned(plan)
        chain = stack.enter_context(serving(config, plan, cluster, state, progress.step))
        prober = stack.enter_context(Prober.on(cluster, plan, chain.endpoint, config))
        first = prober.probe()
        board = ServiceBoard(_events_folder(path))
        stack.callback(board.close)
        record = services.record_of(config.name, plan, cluster, chain.endpoint, path)
        stack.callback(services.withdraw, config.name)
        services.publish(record)
        log = SteeringLog()
        stack.enter_context(steering(config, cluster, steered, None, Watcher(observer.say, log.reading, log.changed)))
        observer.ready(record, first.total_ns / 1e6)
        _watch(chain, prober, board, observer, config.name, hosts, log)


def _watch(
    chain: ServiceChain,
    prober: Prober,
    board: ServiceBoard,
    observer: Observer,
    name: str,
    hosts: list[HostReport],
    log: SteeringLog,
) -> None:
    """Look after a service; ends with an error or an interrupt."""
    begin = time.monotonic()
    probed = begin
    before = chain.reports()
    while True:
        time.sleep(_LOOK_S)
        now = chain.reports()
        figures = compare(before, now)
        before = now
        second = int(time.monotonic() - begin)
        services.tell(name, figures)
        observer.figures(figures)
        board.figures(second, figures)
        while hosts:
            board.host(second, hosts.pop(0))
        board.steering(second, log)
        if time.monotonic() - probed > _PROBE_S:
            probed = time.monotonic()
            board.trace(second, prober.probe())


def _events_folder(checkpoint: Path) -> Path:
    """Where TensorBoard finds the service: beside the training of its run."""
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return run / f"serve-{datetime.now():%Y%m%d-%H%M%S}"
