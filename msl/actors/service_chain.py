"""The NSFs of a service as Ray actors, each pinned to its host: started, watched, and ended."""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from msl.actors.answers import answer, creation_error
from msl.actors.cluster import MEMBER_PREFIX, Session
from msl.actors.member import Identity
from msl.actors.serving_member import ServingMember
from msl.config import Config
from msl.errors import MslError, StageError
from msl.net.fabric import Endpoint
from msl.net.sfc.fabric import SfcFabric
from msl.pipeline.serving.counters import ServiceReport
from msl.pipeline.stage import StageState
from msl.plan import Plan

_REPORT_S = 5.0


@ray.remote
class ServingActor(ServingMember):
    """One hop of a service as a Ray actor; see `ServingMember`."""

    def __init__(
        self, import_folder: str, config: Config, plan: Plan, hop: int, job: str, address: str, step: int
    ) -> None:
        # Factories may lie in the folder in which msl was started.
        if import_folder not in sys.path:
            sys.path.insert(0, import_folder)
        fabric = SfcFabric(plan.steered, hop, config.timeouts.connect_s) if plan.steered is not None else None
        super().__init__(config, plan, hop, job, address, step, fabric)

    def identify(self, ray_node: str | None = None) -> Identity:
        """Where this member runs, as Ray tells."""
        return super().identify(ray_node or ray.get_runtime_context().get_node_id())


class ServiceChain:
    """The hops of a service, running.

    Args:
        config: the job as a service.
        plan: its plan.
        session: the cluster.
    """

    def __init__(self, config: Config, plan: Plan, session: Session) -> None:
        self._config = config
        self._session = session
        self._plan = plan
        self._actors: dict[int, Any] = {}
        self._endings: dict[Any, int] = {}

    @property
    def endpoint(self) -> Endpoint:
        """Where clients connect to, on the source's host."""
        steered = self._plan.steered
        if steered is not None:
            return Endpoint(str(steered.service), steered.port)
        first = self._plan.members[1].place.host
        return Endpoint(self._session.nodes[first].address, self._config.sr.port)

    def start(self, state: StageState, step: int) -> None:
        """Create the actors, give them their weights, and begin to serve, the sink first.

        Raises:
            MslError: what a member could not do, and on which host.
        """
        job = secrets.token_hex(16)
        for member in self._plan.members[1:]:
            place = member.place
            node = self._session.nodes[place.host]
            options = ServingActor.options(  # type: ignore[attr-defined]
                num_cpus=0,
                max_concurrency=8,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False),
                name=f"{MEMBER_PREFIX}{job[:8]}-{place.name}",
            )
            self._actors[place.hop] = options.remote(
                str(Path.cwd()), self._config, self._plan, place.hop, job, node.address, step
            )
        start_s = self._config.timeouts.start_s
        ends = self._call_all("listen", start_s)
        self._call_all("load", start_s, ray.put(dict(state.weights)))
        for hop in sorted(self._actors, reverse=True):
            self._get(self._actors[hop].open.remote(ends.get(hop + 1)), hop, start_s)
        self._endings = {actor.wait.remote(1e9): hop for hop, actor in self._actors.items()}

    def reports(self) -> list[ServiceReport]:
        """How each hop is.

        Raises:
            StageError: one has failed or is gone; the message names host and stage.
        """
        if dead := self._session.dead_hosts():
            raise StageError(f"host {dead[0]}: its raylet is gone")
        ended, _ = ray.wait(list(self._endings), num_returns=len(self._endings), timeout=0)
        for reference in ended:
            hop = self._endings[reference]
            fault = self._get(reference, hop, _REPORT_S)
            place = self._plan.members[hop].place
            raise StageError(f"host {place.host}, stage {place.name}: {fault or 'it has stopped serving'}")
        return list(self._call_all("status", _REPORT_S).values())

    def kill(self) -> None:
        """End the actors."""
        if self._session.headless():
            return  # Ray can end nobody any more; the actors end with their raylets
        for actor in self._actors.values():
            with contextlib.suppress(RayError):
                ray.kill(actor)

    def _call_all(self, method: str, timeout_s: float, *arguments: Any) -> dict[int, Any]:
        asked = {hop: getattr(actor, method).remote(*arguments) for hop, actor in self._actors.items()}
        deadline = time.monotonic() + timeout_s
        return {hop: self._get(it, hop, max(0.0, deadline - time.monotonic())) for hop, it in asked.items()}

    def _get(self, reference: Any, hop: int, timeout_s: float) -> Any:
        place = self._plan.members[hop].place
        where = f"host {place.host}, stage {place.name}"

        def gone(error: RayActorError) -> MslError:
            return StageError(f"{where}: its process is gone") if self._endings else creation_error(error, where)

        return answer(reference, where, timeout_s, gone)


@contextlib.contextmanager
def serving(config: Config, plan: Plan, session: Session, state: StageState, step: int) -> Iterator[ServiceChain]:
    """A service that runs; its actors are gone in the end."""
    chain = ServiceChain(config, plan, session)
    try:
        chain.start(state, step)
        yield chain
    finally:
        chain.kill()
