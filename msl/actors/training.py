"""A training run: from a configuration to a run folder with checkpoints, events and a summary."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from msl.actors import services
from msl.actors.agents import steered_chain
from msl.actors.chain import Chain, running
from msl.actors.cluster import Session, session
from msl.actors.controller import Watcher
from msl.actors.gate import check_inputs
from msl.actors.job import Job, prepare
from msl.actors.member import Report
from msl.actors.network import Network
from msl.actors.resume import changes, newest_checkpoint
from msl.actors.steered import steering
from msl.config import Config, to_yaml
from msl.errors import ConfigError, MslError
from msl.metrics.steering import SteeringLog
from msl.metrics.summary import summarize, write_json
from msl.metrics.tensorboard import TensorBoard
from msl.net.sfc.report import HostReport
from msl.pipeline.batches import size, steps_per_epoch
from msl.pipeline.checkpoint import Progress, initial_state, load, merge, save
from msl.pipeline.counters import StepRecord
from msl.pipeline.source import Tally
from msl.pipeline.stage import StageState
from msl.plan import Plan, lay_out, render

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
SUMMARY = "summary.json"
PLACEMENT = "placement.json"
TRACEBACK = "traceback.txt"
TELEMETRY = "telemetry.jsonl"


class Observer(Protocol):
    """Who is told how a run goes; the command line shows it."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def planned(self, plan: Plan) -> None:
        """The plan is made; nothing runs yet."""

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """An epoch of so many steps begins."""

    def step(self, record: StepRecord) -> None:
        """The source has done a step."""

    def end_epoch(self, entry: Mapping[str, Any]) -> None:
        """An epoch is done, evaluated and saved; `entry` is the summary's."""


@dataclass
class _Run:
    """A run in progress."""

    config: Config
    folder: Path
    plan: Plan
    observer: Observer
    board: TensorBoard
    history: list[Mapping[str, Any]]
    step: int
    fabric_events: list[HostReport]
    """What the host agents told since the last look, with the fabric `sfc`."""
    steering: SteeringLog = field(default_factory=SteeringLog)
    step_ms: list[float] = field(default_factory=list)
    samples: int = 0
    training_s: float = 0.0

    def watch(self, report: Report) -> None:
        """Take the reports of the members."""
        for record in report.records:
            self.board.step(report.name, record)
            if report.name == "source":
                self.step_ms.append(record.wall_ms)
                self.observer.step(record)
                while self.fabric_events:
                    self.board.host(record.step, self.fabric_events.pop(0))
                self.steering.write(self.board, record.step)

    def write_summary(self, completed: bool, error: str | None = None) -> dict[str, Any]:
        """Write summary.json, and return it."""
        rate = self.samples / self.training_s if self.training_s else None
        document = summarize(self.plan, self.history, self.step, self.step_ms, rate, completed)
        if self.plan.steered is not None:
            document["path_changes"] = self.steering.documents()
        if error is not None:
            document["error"] = error
        write_json(self.folder / SUMMARY, document)
        return document


def train(
    config: Config, folder: Path, resume: Path | None, observer: Observer, network: Network, serve: bool = False
) -> dict[str, Any]:
    """Train a job over its chain.

    Args:
        config: the job.
        folder: the run's folder; made if missing.
        resume: run or checkpoint to continue from.
        observer: told how it goes.
        network: where this process stands.
        serve: whether clients may ask the chain between its steps.

    Returns:
        The summary, as written to `summary.json`.

    Raises:
        MslError: what went wrong, and where; checkpoints written so far stay.
    """
    job = prepare(config)
    state, progress = _beginning(config, job, resume, observer)
    _, places = lay_out(config)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(session(config, job.hosts, network, observer.say))
        fabric_events: list[HostReport] = []
        steered = stack.enter_context(steered_chain(config, cluster, job.hosts, places, fabric_events.append))
        plan = job.plan({host: node.cpus for host, node in cluster.nodes.items()}, steered)
        observer.planned(plan)
        if serve:
            check_inputs(plan)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(to_yaml(config), encoding="utf-8")
        (folder / "plan.txt").write_text(render(plan) + "\n", encoding="utf-8")
        board = TensorBoard(folder)
        board.plan(render(plan))
        run = _Run(config, folder, plan, observer, board, list(progress.history), progress.step, fabric_events)
        try:
            with running(config, plan, cluster, state, run.watch) as chain:
                _write_placement(run, chain)
                observer.say(" -> ".join(f"{hop['name']}@{hop['host']}" for hop in chain.path) + " is open")
                try:
                    if serve:
                        stack.enter_context(_served(run, chain, cluster))
                    stack.enter_context(steering(config, cluster, steered, folder, _watcher(run)))
                    _train_epochs(run, chain, job, progress.epoch)
                    chain.end()
                except MslError:
                    if chain.detail:
                        (folder / TRACEBACK).write_text(chain.detail, encoding="utf-8")
                        observer.say(f"the traceback is in {folder / TRACEBACK}")
                    raise
        except BaseException as error:
            run.write_summary(False, str(error) if isinstance(error, MslError) else type(error).__name__)
            raise
        finally:
            board.close()
        return run.write_summary(True)


def _watcher(run: _Run) -> Watcher:
    recording = run.folder / TELEMETRY if run.config.steering.record else None
    return Watcher(run.observer.say, run.steering.reading, run.steering.changed, recording)


@contextlib.contextmanager
def _served(run: _Run, chain: Chain, cluster: Session) -> Iterator[None]:
    """Let clients ask the chain while it trains."""
    record = services.record_of(run.config.name, run.plan, cluster, chain.serve(run.step), run.folder)
    services.publish(record)
    run.observer.say(
        f"service {record.name!r} answers between the steps, at [{record.address}]:{record.port} from host"
        f" {record.source}"
    )
    try:
        yield
    finally:
        services.withdraw(record.name)


def _write_placement(run: _Run, chain: Chain) -> None:
    """Where each member really runs: its host's Ray node, and its process."""
    members = [
        {"name": m.place.name, "host": m.place.host, "ray_node": i.ray_node, "pid": i.pid, "threads": i.threads}
        for m, i in zip(run.plan.members, chain.identities(), strict=True)
    ]
    write_json(run.folder / PLACEMENT, {"members": members})


def _train_epochs(run: _Run, chain: Chain, job: Job, first: int) -> None:
    config = run.config
    steps = steps_per_epoch(size(job.data.train), config.train.batch_size)
    for epoch in range(first, config.train.epochs):
        run.observer.begin_epoch(epoch, steps)
        start = time.perf_counter()
        trained = chain.train_epoch(epoch, run.step)
        seconds = time.perf_counter() - start
        run.step += steps
        run.samples += trained.samples
        run.training_s += seconds
        tested = chain.evaluate(run.step)
        run.board.epoch(run.step, tested.loss, tested.accuracy)
        run.history.append(_entry(epoch, trained, tested, seconds))
        last = epoch + 1 == config.train.epochs
        if (epoch + 1) % config.checkpoint.every == 0 or last:
            state = merge(job.model.state_dict(), chain.states())
            progress = Progress(epoch + 1, run.step, config.seed, tuple(run.history))
            save(run.folder / CHECKPOINTS, state, progress, config.checkpoint.keep)
        if last:
            _write_hparams(run, tested)
        run.observer.end_epoch(run.history[-1])


def _entry(epoch: int, trained: Tally, tested: Tally, seconds: float) -> dict[str, Any]:
    return {
        "epoch": epoch + 1,
        "loss": trained.loss,
        "accuracy": trained.accuracy,
        "test_loss": tested.loss,
        "test_accuracy": tested.accuracy,
        "seconds": round(seconds, 3),
    }


def _write_hparams(run: _Run, tested: Tally) -> None:
    train = run.config.train
    settings: dict[str, str | int | float | bool] = {
        "model": run.config.model.factory,
        "cut": ", ".join(run.plan.cut),
        "fabric": run.plan.fabric,
        "batch_size": train.batch_size,
        "micro_batch": train.micro_batch,
        "in_flight": run.plan.in_flight,
        "epochs": train.epochs,
        "seed": run.config.seed,
        "optimizer": train.optimizer.factory,
        "schedule": train.schedule.factory if train.schedule else "none",
    }
    settings |= {
        f"optimizer.{name}": value
        for name, value in train.optimizer.args.items()
        if isinstance(value, (str, int, float, bool))
    }
    results = {"hparam/test_loss": tested.loss}
    if tested.accuracy is not None:
        results["hparam/test_accuracy"] = tested.accuracy
    run.board.hparams(settings, results)


def _beginning(config: Config, job: Job, resume: Path | None, observer: Observer) -> tuple[StageState, Progress]:
    """State and position to begin with: the initial weights, or a checkpoint's."""
    if resume is None:
        return initial_state(job.model), Progress(0, 0, config.seed)
    path = newest_checkpoint(resume)
    state, progress = load(path, job.model)
    if progress.seed != config.seed:
        raise ConfigError(f"seed: {config.seed}: {path} was trained with seed {progress.seed}; continue with that one")
    if progress.epoch >= config.train.epochs:
        raise ConfigError(
            f"train.epochs: {config.train.epochs}: {path} has {progress.epoch} epochs already; ask for more with"
            f" --set train.epochs={progress.epoch + 1}"
        )
    for difference in changes(path, config):
        observer.say(f"differs from the run that is resumed: {difference}; it will not go on bit-identically")
    observer.say(f"resuming after epoch {progress.epoch} from {path}")
    return state, progress
