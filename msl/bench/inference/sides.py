"""The ways to ask the same stages on the same hosts that are there at once: services, Ray calls, the unsplit model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from msl.actors.agents import steered_chain
from msl.actors.cluster import Session
from msl.actors.job import Job, prepare
from msl.actors.service_chain import ServiceChain, serving
from msl.bench.rivals.contest import Contest, Inputs, Rival
from msl.bench.rivals.ray_calls import RayCalls
from msl.bench.rivals.unsplit import Unsplit
from msl.client import Client
from msl.config import Config
from msl.errors import StageError
from msl.net.fabric import Endpoint
from msl.net.trace import Trace
from msl.pipeline.batches import sample_inputs
from msl.pipeline.build import as_inputs
from msl.pipeline.checkpoint import initial_state
from msl.plan import Plan, lay_out

UNSPLIT, DIRECT, SFC, RAY, COMPILED = "unsplit", "direct", "sfc", "ray", "compiled"
_POOL = 512
"""Samples from which the requests are drawn."""


class Served(Rival):
    """A service, asked over one connection from this process, which stands on the source's host.

    Args:
        chain: the service.
        config: its configuration.
    """

    def __init__(self, chain: ServiceChain, config: Config) -> None:
        self.chain = chain
        self._client = connect(chain.endpoint, config)

    def infer(self, inputs: Inputs) -> torch.Tensor:
        """The model's output for a batch."""
        output: torch.Tensor = self._client.predict(*as_inputs(inputs))
        return output

    def traced(self, inputs: Inputs) -> Trace:
        """Where the time of a request for a batch went."""
        pending = self._client.submit(*as_inputs(inputs), trace=True)
        pending.result()
        assert pending.trace is not None
        return pending.trace

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def connect(endpoint: Endpoint, config: Config) -> Client:
    """A client of a service."""
    timeouts = config.timeouts
    return Client((endpoint.address, endpoint.port), config.name, timeouts.step_s, timeouts.connect_s)


class Questions:
    """Batches of the job's samples, drawn by round, and what the unsplit model makes of them.

    Args:
        job: the job.
        unsplit: its model.
    """

    def __init__(self, job: Job, unsplit: Unsplit) -> None:
        self._pool = sample_inputs(job.data.train, _POOL)
        self._unsplit = unsplit
        self._turn = 0
        self._drawn: dict[int, tuple[Inputs, torch.Tensor]] = {}

    def draw(self, turn: int, batch: int) -> tuple[Inputs, torch.Tensor]:
        """A batch, and the unsplit model's output."""
        if turn != self._turn:
            self._turn, self._drawn = turn, {}
        if batch not in self._drawn:
            self._drawn[batch] = self._draw(turn, batch)
        return self._drawn[batch]

    def _draw(self, turn: int, batch: int) -> tuple[Inputs, torch.Tensor]:
        generator = torch.Generator().manual_seed(turn * 1_000_003 + batch)
        rows = torch.randint(len(self._pool[0]), (batch,), generator=generator)
        inputs = tuple(values[rows] for values in self._pool)
        return inputs, self._unsplit.infer(inputs)


@dataclass(frozen=True)
class Field:
    """All that a chain of one length is compared with."""

    config: Config
    plan: Plan
    contest: Contest
    questions: Questions
    services: Mapping[str, Served]
    """By fabric."""
    rivals: Mapping[str, Rival]
    """By side; a compiled graph is not among them, see `latency.py`."""


@contextlib.contextmanager
def services_of(job: Job, session: Session) -> Iterator[dict[str, tuple[Plan, ServiceChain]]]:
    """The job as a service over each fabric that the cluster has."""
    config = job.config
    hosts, places = lay_out(config)
    cpus = {host: node.cpus for host, node in session.nodes.items()}
    state = initial_state(job.model)
    with contextlib.ExitStack() as stack:
        steered = stack.enter_context(steered_chain(config, session, hosts, places))
        plans = {SFC: job.plan(cpus, steered)} if steered is not None else {}
        plans[DIRECT] = job.plan(cpus)
        yield {
            fabric: (plan, stack.enter_context(serving(config, plan, session, state, 0)))
            for fabric, plan in plans.items()
        }


@contextlib.contextmanager
def field_of(config: Config, session: Session) -> Iterator[Field]:
    """Start all that is there at once."""
    job = prepare(config)
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(services_of(job, session))
        services = {side: stack.enter_context(Served(chain, config)) for side, (_, chain) in running.items()}
        plan, _ = running[DIRECT]
        threads = plan.sink.threads
        state = initial_state(job.model)
        contest = Contest.of(config, plan, session, state, threads)
        unsplit = stack.enter_context(Unsplit(config, state, threads))
        rivals = {UNSPLIT: unsplit, **services, RAY: stack.enter_context(RayCalls(contest))}
        yield Field(config, plan, contest, Questions(job, unsplit), services, rivals)


def check_output(side: str, output: torch.Tensor, expected: torch.Tensor) -> None:
    """Check that a side computed the unsplit model's bits.

    Raises:
        StageError: it did not.
    """
    if not torch.equal(output, expected):
        most = (output - expected).abs().max().item() if output.shape == expected.shape else float("nan")
        raise StageError(f"{side}: the output is not the unsplit model's: they differ by up to {most:g}")
