"""The host agents of an SR domain as Ray actors, and a job's chain through the domain."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from msl.actors.agent_service import AgentService
from msl.actors.cluster import Session
from msl.config import Config
from msl.errors import ClusterError, MslError, NetworkError
from msl.net.sfc.report import HostReport
from msl.plan import ChainPlan, DomainPlan, Place, lay_chain, lay_domain
from msl.plan.addressing import MAX_CHAINS

log = logging.getLogger(__name__)

NAMESPACE = "msl"
"""Ray namespace in which the agents have their names."""
_RENEW_S = 5.0
_CALL_S = 20.0


AgentActor = ray.remote(AgentService)


class Agents:
    """The agents of a domain, as a driver calls them.

    Args:
        domain: the SR domain.
        actors: handle of each host's agent.
    """

    def __init__(self, domain: DomainPlan, actors: Mapping[str, Any]) -> None:
        self.domain = domain
        self._actors = actors

    @property
    def hosts(self) -> tuple[str, ...]:
        """Hosts whose agents these are."""
        return tuple(self._actors)

    def call(self, method: str, *arguments: Any, hosts: Sequence[str] | None = None) -> dict[str, Any]:
        """Call a method of the agents, on all hosts at once; their answers by host.

        Raises:
            NetworkError: what an agent could not do, and on which host.
            ClusterError: an agent is gone or does not answer.
        """
        chosen = self._actors if hosts is None else {host: self._actors[host] for host in hosts}
        asked = {host: getattr(actor, method).remote(*arguments) for host, actor in chosen.items()}
        deadline = time.monotonic() + _CALL_S
        return {host: _answer(host, it, max(0.1, deadline - time.monotonic())) for host, it in asked.items()}

    def begin(self, method: str, host: str, *arguments: Any) -> Any:
        """Call a method of one agent, and do not wait; `finish` does."""
        return getattr(self._actors[host], method).remote(*arguments)

    def finish(self, host: str, reference: Any) -> Any:
        """The answer to `begin`; raises as `call` does."""
        return _answer(host, reference, _CALL_S)

    def open_chain(self, config: Config, places: Sequence[Place]) -> ChainPlan:
        """Set a chain up on all hosts, under the first number that is free."""
        taken = {number for chains in self.call("chains").values() for number in chains}
        for number in (number for number in range(1, MAX_CHAINS + 1) if number not in taken):
            chain = lay_chain(config, self.domain, places, number)
            try:
                self.call("add_chain", chain)
            except NetworkError as error:
                self.call("remove_chain", number)
                if "another job" not in str(error):
                    raise
                continue  # somebody was faster
            return chain
        raise NetworkError("all chain numbers of the SR domain are taken")

    def close_chain(self, chain: ChainPlan) -> None:
        """Remove a chain from all hosts that still answer."""
        for host in self._actors:
            with contextlib.suppress(MslError):
                self.call("remove_chain", chain.number, hosts=[host])

    def remove(self) -> dict[str, list[str]]:
        """Undo everything, and end the agents; what was removed, by host."""
        removed: dict[str, list[str]] = self.call("undo")
        for actor in self._actors.values():
            with contextlib.suppress(RayError):
                ray.kill(actor)
        return removed


def _answer(host: str, reference: Any, timeout_s: float) -> Any:
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, MslError):
            raise type(cause)(str(cause)) from error
        raise NetworkError(f"host {host}: its agent failed: {' '.join(str(cause).split())[:300]}") from error
    except RayActorError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ClusterError(f"host {host}: its agent is gone: {reason[:300]}") from error
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(f"host {host}: its agent does not answer within {timeout_s:.0f} s") from error


def agent_name(host: str) -> str:
    """Name of a host's agent among Ray's actors."""
    return f"msl-agent-{host}"


def find_agents(domain: DomainPlan) -> Agents | None:
    """The agents that are running on all hosts of a domain; None if one is missing."""
    found = running_agents(domain)
    return found if all(host.name in found.hosts for host in domain.hosts) else None


def running_agents(domain: DomainPlan) -> Agents:
    """The agents of a domain that are running, be they all or not."""
    actors = {}
    for host in domain.hosts:
        with contextlib.suppress(ValueError):
            actors[host.name] = ray.get_actor(agent_name(host.name), namespace=NAMESPACE)
    return Agents(domain, actors)


def start_agents(config: Config, session: Session, hosts: Sequence[str]) -> Agents:
    """The agents of a session's hosts; those that are not running yet are started.

    Args:
        config: the job's configuration.
        session: the cluster.
        hosts: names of all hosts of the configuration.

    Raises:
        NetworkError: what a host refuses.
    """
    cluster = session.cluster
    if cluster is not None:
        domain = cluster.domain()
        interfaces = {host.name: host.interfaces for host in cluster.hosts}
    else:
        domain = lay_domain(config, hosts)
        interfaces = {host.name: host.interfaces for host in config.hosts}
    mtus = {host.name: host.mtu for host in config.hosts}
    actors = {}
    for host in domain.hosts:
        if host.name not in session.nodes:
            continue
        actors[host.name] = AgentActor.options(
            name=agent_name(host.name),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_concurrency=12,  # observers wait in their calls
            max_restarts=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(session.nodes[host.name].node_id, soft=False),
        ).remote(domain, host.name, interfaces[host.name], mtus.get(host.name))
    agents = Agents(domain, actors)
    for name, done in agents.call("ready").items():
        log.info("host %s: the agent %s", name, done)
    return agents


@contextlib.contextmanager
def steered_chain(
    config: Config,
    session: Session,
    hosts: Sequence[str],
    places: Sequence[Place],
    watch: Callable[[HostReport], None] = lambda _report: None,
) -> Iterator[ChainPlan | None]:
    """The job's chain through the SR domain, set up and leased while the body runs; None with the fabric `direct`.

    Its path stays as it is; `msl.actors.steered.steering` has it change.

    Args:
        config: the job's configuration.
        session: the cluster.
        hosts: names of all hosts of the configuration.
        places: the members, as `lay_out` gives them.
        watch: given the hosts' reports now and then, from another thread.

    Raises:
        NetworkError: what a host refuses.
    """
    if session.fabric != "sfc":
        yield None
        return
    agents = start_agents(config, session, hosts)
    chain = agents.open_chain(config, places)
    over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(agents, chain, over, watch), name="msl-lease", daemon=True)
    keeper.start()
    try:
        yield chain
    finally:
        over.set()
        keeper.join(timeout=_CALL_S)  # before the chain goes: a late renewal would bring it back
        if not session.headless():
            agents.close_chain(chain)
            _remove_idle(agents, session)


def _keep(agents: Agents, chain: ChainPlan, over: threading.Event, watch: Callable[[HostReport], None]) -> None:
    while not over.is_set():
        for host in agents.hosts:
            try:
                watch(agents.call("renew", chain, hosts=[host])[host])
            except MslError as error:
                if not over.is_set():
                    log.warning("host %s: %s", host, error)
        over.wait(_RENEW_S)


def _remove_idle(agents: Agents, session: Session) -> None:
    """On an existing cluster nothing stays: the last chain takes the agents with it."""
    if session.cluster is not None:
        return  # they go with the cluster
    with contextlib.suppress(MslError):
        if not any(agents.call("chains").values()):
            agents.remove()
