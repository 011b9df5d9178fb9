"""One hop of a service: what its Ray actor does, free of Ray itself.

The driver calls, in this order: `listen` (all), `load` (all), `open` (the sink first), then `status` as often as it
likes, and `close`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from msl.actors.agreement import schema_of
from msl.actors.member import Identity
from msl.config import Config
from msl.net.fabric import DirectFabric, Endpoint, Fabric, endpoint_of
from msl.pipeline.build import build_model, cut_model
from msl.pipeline.runtime import Tensor, set_threads, threads
from msl.pipeline.serving.compute import Inference
from msl.pipeline.serving.counters import ServiceReport
from msl.pipeline.serving.rules import rules_of
from msl.pipeline.serving.service import Service
from msl.pipeline.serving.turns import Turns
from msl.plan import Plan


class ServingMember:
    """An NSF or the sink of a service.

    Args:
        config: the job as a service, as `serving_config` gives it.
        plan: its plan.
        hop: which member of the plan this is; from 1.
        job: identifier of this start of the service, known to its members only.
        address: address of this host, where the fabric `direct` listens.
        step: optimizer steps that the weights have behind them.
        fabric: the fabric; `direct` by default.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        hop: int,
        job: str,
        address: str,
        step: int,
        fabric: Fabric | None = None,
    ) -> None:
        self._config = config
        self._me = plan.members[hop]
        self._address = address
        self._fabric = fabric
        onward = plan.members[hop + 1].place.title if hop + 1 < len(plan.members) else None
        self._rules = rules_of(config, plan, self._me.place, hop, step, job, schema_of(plan), onward)
        set_threads(self._me.threads)
        stage = self._me.place.stage
        assert stage is not None, "a service's stages all live behind the client"
        self._inference = Inference(cut_model(config, plan, build_model(config))[stage])
        self._listener: socket.socket | None = None
        self._service: Service | None = None

    def identify(self, ray_node: str | None = None) -> Identity:
        """Where this member runs."""
        return Identity(self._me.place.name, os.getpid(), socket.gethostname(), ray_node, threads())

    def listen(self) -> Endpoint:
        """Listen for clients, or for the previous hop; returns where."""
        port = self._config.sr.port if self._rules.first else 0
        fabric = self._fabric or DirectFabric(self._address, port=port)
        self._listener = fabric.listen()
        return endpoint_of(self._listener)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over this stage's part of the unsplit model's weights."""
        self._inference.load(dict(weights))

    def open(self, next_hop: Endpoint | None) -> None:
        """Begin to serve; the next hop must do so already."""
        assert self._listener is not None
        serve = self._config.serve
        self._service = Service(
            self._rules,
            self._inference,
            self._fabric or DirectFabric(self._address, next_hop),
            self._listener,
            Turns(serve.max_wait_ms, serve.max_batch),
            self._me.threads,
        )
        self._service.start()

    def status(self) -> ServiceReport:
        """How this hop is."""
        assert self._service is not None
        return self._service.report()

    def wait(self, timeout_s: float) -> str | None:
        """Wait until this hop has stopped serving, at most `timeout_s`; returns why, if it failed."""
        assert self._service is not None
        return self._service.wait(timeout_s)

    def close(self) -> None:
        """Stop serving."""
        if self._service is not None:
            self._service.close()
