"""Runs rivals of a job on its cluster, and writes what they computed and how long it took as JSON.

    python -m tests.cluster.rivals_driver CONFIG RESULT TRIPS STEPS RIVAL ...

A process of its own: it enters the cluster's network before anything starts a thread.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from msl.actors.cluster import session
from msl.actors.job import Job, prepare
from msl.actors.network import entered_network
from msl.bench.calls import actors, answer
from msl.bench.rivals.compiled import CompiledGraph
from msl.bench.rivals.contest import Contest
from msl.bench.rivals.gloo import GlooPipeline
from msl.bench.rivals.ray_calls import RayCalls
from msl.bench.rivals.ray_training import RayCallsTraining
from msl.bench.rivals.unsplit import Unsplit
from msl.bench.unsplit import UnsplitActor
from msl.config import Config, load_config
from msl.pipeline.batches import sample_inputs
from msl.pipeline.checkpoint import initial_state

INFERRING: dict[str, Callable[[Contest], Any]] = {
    "ray_calls": RayCalls,
    "compiled_graph": partial(CompiledGraph, samples=8),
}
TRAINING: dict[str, Callable[[Contest], Any]] = {
    "ray_training": RayCallsTraining,
    "gloo_1f1b": GlooPipeline,
    "gloo_gpipe": partial(GlooPipeline, order="gpipe"),
}


def timed(times: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    """What a call returns; its seconds go to `times`."""
    begin = time.perf_counter()
    result = call()
    times[name] = round(time.perf_counter() - begin, 2)
    return result


def peers(_actor: Any) -> list[str]:
    """Addresses that this actor's process has TCP connections to."""
    connections = psutil.Process().net_connections("tcp")
    return [connection.raddr.ip.removeprefix("::ffff:") for connection in connections if connection.raddr]


def infer(contest: Contest, job: Job, names: list[str], trips: int, times: dict[str, float]) -> dict[str, Any]:
    """For each rival whether its outputs are the unsplit model's, bit for bit, and its milliseconds."""
    batches = [sample_inputs(job.data.train, samples) for samples in (1, 8, 3, 1)]
    with Unsplit(contest.config, initial_state(job.model), contest.threads) as unsplit:
        expected = [unsplit.infer(inputs) for inputs in batches]
    found: dict[str, Any] = {}
    for name in names:
        make = INFERRING[name]
        rival = timed(times, f"{name} start", partial(make, contest))
        with rival:
            equal = [torch.equal(rival.infer(x), y) for x, y in zip(batches, expected, strict=True)]
            milliseconds = []
            for _ in range(trips):
                begin = time.perf_counter()
                rival.infer(batches[0])
                milliseconds.append(1e3 * (time.perf_counter() - begin))
            begin = time.perf_counter()
        times[f"{name} close"] = round(time.perf_counter() - begin, 2)
        found[name] = {"equal": equal, "milliseconds": statistics.median(milliseconds)}
    return found


def train(contest: Contest, names: list[str], steps: int, times: dict[str, float]) -> dict[str, Any]:
    """For each rival the losses of the first steps, and its seconds; two calls, so that one goes on after another."""
    found: dict[str, Any] = {}
    config = contest.config
    with actors() as started:
        node = contest.session.nodes[contest.plan.source.place.host]
        trainer = started.start(UnsplitActor, node, str(Path.cwd()), config, contest.threads)
        losses = [answer(trainer.train_steps.remote(e, e * steps, steps), "unsplit", 200.0) for e in (0, 1)]
    found["unsplit"] = {"losses": [loss for part in losses for loss in part]}
    for name in names:
        make = TRAINING[name]
        rival = timed(times, f"{name} start", partial(make, contest))
        with rival:
            told = [result for epoch in (0, 1) for result in rival.train_steps(epoch, epoch * steps, steps)]
            if isinstance(rival, GlooPipeline):
                told_peers = rival._ranks.call_all("__ray_call__", 30.0, peers)
            begin = time.perf_counter()
        times[f"{name} close"] = round(time.perf_counter() - begin, 2)
        found[name] = {"losses": [loss for loss, _ in told], "seconds": [seconds for _, seconds in told]}
        if isinstance(rival, GlooPipeline):
            found[name]["peers"] = told_peers
    return found


def run(config: Config, trips: int, steps: int, names: list[str]) -> dict[str, Any]:
    """Some rivals of a job."""
    times: dict[str, float] = {}
    with ExitStack() as stack:
        network = stack.enter_context(entered_network(config, print))
        job = prepare(config)
        cluster = stack.enter_context(session(config, job.hosts, network, print))
        plan = job.plan({host: node.cpus for host, node in cluster.nodes.items()})
        contest = Contest.of(config, plan, cluster, initial_state(job.model), 1)
        result = infer(contest, job, [name for name in names if name in INFERRING], trips, times)
        result |= train(contest, [name for name in names if name in TRAINING], steps, times)
        result["addresses"] = [cluster.nodes[member.place.host].address for member in contest.stages]
    return result | {"times": times}


if __name__ == "__main__":
    path, out = map(Path, sys.argv[1:3])
    out.write_text(json.dumps(run(load_config(path), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]), indent=1))
