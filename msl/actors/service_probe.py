"""Asks a service from its source's host, as a client would: when it starts, and now and then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from msl.actors.answers import answer
from msl.actors.cluster import Session
from msl.client import Client
from msl.config import Config
from msl.errors import ClusterError
from msl.net.fabric import Endpoint
from msl.net.trace import Trace
from msl.plan import Plan

_ALLOWANCE_S = 5.0


@ray.remote
class ProbeActor:
    """Stands on the source's host."""

    def probe(self, endpoint: Endpoint, service: str, timeout_s: float, connect_s: float) -> Trace:
        """Send a request of one sample of zeros through the whole chain; where its time went."""
        with Client((endpoint.address, endpoint.port), service, timeout_s=timeout_s, connect_s=connect_s) as client:
            zeros = [np.zeros((1, *spec.shape), spec.dtype) for spec in client.inputs]
            pending = client.submit(*zeros, trace=True)
            pending.result()
            assert pending.trace is not None
            return pending.trace


class Prober:
    """Asks a service through an actor on its source's host.

    Args:
        actor: the actor.
        endpoint: where the service is reached.
        config: the job.
        host: the source's host.
    """

    def __init__(self, actor: Any, endpoint: Endpoint, config: Config, host: str) -> None:
        self._actor = actor
        self._endpoint = endpoint
        self._config = config
        self._host = host

    @classmethod
    @contextlib.contextmanager
    def on(cls, session: Session, plan: Plan, endpoint: Endpoint, config: Config) -> Iterator[Prober]:
        """A prober on the plan's source's host; gone in the end."""
        host = plan.source.place.host
        affinity = NodeAffinitySchedulingStrategy(node_id=session.nodes[host].node_id, soft=False)
        actor = ProbeActor.options(num_cpus=0, max_restarts=0, scheduling_strategy=affinity).remote()  # type: ignore[attr-defined]
        try:
            yield cls(actor, endpoint, config, host)
        finally:
            with contextlib.suppress(RayError):
                ray.kill(actor)

    def probe(self) -> Trace:
        """One request through the whole chain.

        Raises:
            MslError: it was refused, or there was no answer in time.
        """
        timeouts = self._config.timeouts
        where = f"host {self._host}, asking the service"
        longest_s = timeouts.connect_s + timeouts.step_s + timeouts.start_s + _ALLOWANCE_S
        asked = self._actor.probe.remote(self._endpoint, self._config.name, timeouts.step_s, timeouts.connect_s)
        trace: Trace = answer(asked, where, longest_s, lambda _error: ClusterError(f"{where}: the process is gone"))
        return trace
