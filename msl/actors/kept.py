"""A cluster that is kept between runs: brought up, looked at, and what agents tell of its hosts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from msl.actors import local
from msl.actors.agents import Agents, find_agents, start_agents
from msl.actors.cluster import MEMBER_PREFIX, Session, connected, nodes_of, ray_nodes, session
from msl.actors.network import Network
from msl.config import Config
from msl.errors import ClusterError
from msl.net.sfc.report import HostReport
from msl.plan import ChainPlan, lay_out

_ASK_S = 2.0
_RATE_S = 1.0


def bring_up(config: Config, network: Network) -> local.LocalCluster:
    """Start a config's local cluster, wait until all its hosts are there, and leave it running.

    With the fabric `sfc` its hosts' agents are started, too.

    Args:
        config: the job whose hosts are started.
        network: where this process stands.

    Raises:
        MslError: it is running already, or did not start; nothing stays then.
    """
    if network.kept is not None:
        names = ", ".join(host.name for host in network.kept.hosts)
        raise ClusterError(f"the cluster {network.kept.name!r} is up already (hosts {names}); 'msl down' ends it")
    hosts, _ = lay_out(config)
    cluster = local.start(config, hosts, network.private, True, network.testbed)
    try:
        with connected(cluster):
            nodes = nodes_of(config, hosts, config.timeouts.start_s, cluster)
            if network.fabric == "sfc":
                start_agents(config, Session(nodes, cluster, True, "sfc"), hosts)
    except BaseException:
        local.stop(cluster)
        raise
    return cluster


@dataclass(frozen=True)
class HostStatus:
    """A host of a running cluster."""

    name: str
    state: str
    address: str
    cpus: int
    metrics: str
    """URL of its Prometheus metrics."""
    members: tuple[str, ...]
    """Members of chains that run on it."""


@dataclass(frozen=True)
class DomainStatus:
    """The SR domain of a running cluster."""

    chains: tuple[ChainPlan, ...]
    before: dict[str, HostReport]
    """By host, a moment before `now`: the difference gives rates."""
    now: dict[str, HostReport]


@dataclass(frozen=True)
class ClusterStatus:
    """A running cluster."""

    cluster: local.LocalCluster
    hosts: tuple[HostStatus, ...]
    domain: DomainStatus | None = field(default=None)
    """None if its hosts have no agents."""


def look(cluster: local.LocalCluster) -> ClusterStatus:
    """How a kept cluster is; from within its network."""
    return next(watch(cluster))


def watch(cluster: local.LocalCluster) -> Iterator[ClusterStatus]:
    """How a kept cluster is, again and again, about once a second; from within its network."""
    if cluster.hosts[0] in cluster.dead_hosts():
        while True:
            yield _status(cluster, {}, {}, None)
    with connected(cluster):
        while True:
            nodes = {node["NodeName"]: node for node in ray_nodes() if node["Alive"]}
            healthy = not cluster.dead_hosts()
            agents = find_agents(cluster.domain()) if cluster.testbed and healthy else None
            domain = _look_at(agents) if agents is not None else None
            yield _status(cluster, nodes, _members(), domain)


def _status(
    cluster: local.LocalCluster,
    nodes: Mapping[str, Any],
    members: Mapping[str, list[str]],
    domain: DomainStatus | None,
) -> ClusterStatus:
    dead = {host.name for host in cluster.dead_hosts()}
    return ClusterStatus(
        cluster,
        tuple(
            HostStatus(
                host.name,
                "dead" if host.name in dead or host.name not in nodes else "alive",
                host.address,
                host.cpus,
                f"http://{host.address}:{nodes[host.name]['MetricsExportPort']}" if host.name in nodes else "-",
                tuple(sorted(members.get(nodes[host.name]["NodeID"], ()))) if host.name in nodes else (),
            )
            for host in cluster.hosts
        ),
        domain,
    )


def _look_at(agents: Agents) -> DomainStatus:
    before = agents.call("report")
    time.sleep(_RATE_S)
    chains = {chain.number: chain for found in agents.call("chains").values() for chain in found.values()}
    return DomainStatus(tuple(chains[number] for number in sorted(chains)), before, agents.call("report"))


def _members() -> dict[str, list[str]]:
    """Names of the chain members that run on the cluster, by Ray node."""
    found: dict[str, list[str]] = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["name"].startswith(MEMBER_PREFIX) and entry["namespace"] != "msl":
            with contextlib.suppress(RayError, ValueError):  # it may end at any moment
                actor = ray.get_actor(entry["name"], namespace=entry["namespace"])
                identity: Any = ray.get(actor.identify.remote(), timeout=_ASK_S)
                found.setdefault(identity.ray_node, []).append(identity.name)
    return found


def remove_agents(config: Config, network: Network) -> dict[str, list[str]]:
    """On an existing cluster: undo all that agents made on its hosts, running or not; what was removed, by host.

    An agent that is gone is started once more: it finds what it had made, and removes it.
    """
    hosts, _ = lay_out(config)
    with session(config, hosts, network, lambda _text: None) as cluster:
        return start_agents(config, cluster, hosts).remove()
