"""The Ray cluster as a job sees it: its hosts as Ray nodes, and this process connected as a driver."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from msl.actors import local
from msl.actors.guard import guarded
from msl.actors.network import FabricName, Network
from msl.config import Config
from msl.errors import ClusterError

_POLL_S = 0.1
MEMBER_PREFIX = "msl-"
"""How the names of chain members begin among Ray's actors."""


@dataclass(frozen=True)
class Node:
    """A host as a Ray node."""

    host: str
    node_id: str
    address: str
    cpus: int
    metrics_port: int


@dataclass(frozen=True)
class Session:
    """This process as a driver of a cluster."""

    nodes: Mapping[str, Node]
    cluster: local.LocalCluster | None
    """The built-in local cluster; None on an existing one."""
    kept: bool
    """Whether the cluster stays when this process ends."""
    fabric: FabricName = "direct"
    """How smashed data travels."""

    def headless(self) -> bool:
        """Whether the local cluster has lost the host that Ray is governed from."""
        return self.cluster is not None and self.cluster.hosts[0].name in self.dead_hosts()

    def dead_hosts(self) -> list[str]:
        """Hosts of the local cluster whose raylet is gone."""
        return [host.name for host in self.cluster.dead_hosts()] if self.cluster else []


@contextlib.contextmanager
def session(config: Config, hosts: Sequence[str], network: Network, say: Callable[[str], None]) -> Iterator[Session]:
    """Connect to the config's cluster, starting a local one if none is kept; undone in the end.

    Raises:
        ClusterError: the cluster did not start, cannot be reached, or lacks a host.
    """
    if config.cluster.address is not None:
        _check_reachable(config.cluster.address, config.timeouts.connect_s)
        with _driver(config.cluster.address, None, config):
            yield Session(nodes_of(config, hosts, config.timeouts.start_s), None, True, network.fabric)
        return
    with contextlib.ExitStack() as stack:
        cluster = network.kept
        if cluster is None:
            say(f"starting {len(hosts)} raylets, one per host")
            cluster = local.start(config, hosts, network.private, False, network.testbed)
            stack.enter_context(guarded(cluster.name))
            stack.callback(local.stop, cluster)
        else:
            _check_hosts(cluster, hosts)
            say(f"using the running cluster {cluster.name!r}")
        with _driver(cluster.gcs, cluster, config):
            nodes = nodes_of(config, hosts, config.timeouts.start_s, cluster)
            joined = Session(nodes, cluster, network.kept is not None, network.fabric)
            try:
                yield joined
            finally:
                if network.kept is None and joined.headless():
                    # Ray's own shutdown looks for the head for seconds: end the rest meanwhile.
                    threading.Thread(target=local.stop, args=(cluster,)).start()


def _check_reachable(address: str, timeout_s: float) -> None:
    """Whether anything listens there; Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except OSError as error:
        reason = error.strerror or f"no answer within {timeout_s:g} s"
        raise ClusterError(
            f"cluster.address: {address}: cannot be reached: {reason}; is the head of the Ray cluster up, and is this"
            " its GCS port?"
        ) from error


def _check_hosts(cluster: local.LocalCluster, hosts: Sequence[str]) -> None:
    names = [host.name for host in cluster.hosts]
    missing = [host for host in hosts if host not in names]
    if missing:
        raise ClusterError(
            f"the running cluster {cluster.name!r} has the hosts {', '.join(names)}, not {', '.join(missing)};"
            " 'msl down' ends it"
        )


@contextlib.contextmanager
def connected(cluster: local.LocalCluster) -> Iterator[None]:
    """This process as a driver of a running local cluster, from within its network."""
    with _driver(cluster.gcs, cluster, None):
        yield


@contextlib.contextmanager
def connected_to(config: Config) -> Iterator[None]:
    """This process as a driver of the existing cluster that a configuration names."""
    address = config.cluster.address
    assert address is not None
    _check_reachable(address, config.timeouts.connect_s)
    with _driver(address, None, config):
        yield


@contextlib.contextmanager
def _driver(address: str, cluster: local.LocalCluster | None, config: Config | None) -> Iterator[None]:
    options: dict[str, Any] = {}
    if cluster is not None:
        os.environ.update(local.ray_environment(cluster.token_path))
        options["_node_ip_address"] = cluster.gcs.rpartition(":")[0]
    elif config is not None and config.cluster.runtime_env:
        options["runtime_env"] = dict(config.cluster.runtime_env)
    logging.getLogger("ray").setLevel(logging.ERROR)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ClusterError(f"cannot join the Ray cluster at {address}: {reason[:300]}") from error
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in place, which ends the process at once
    try:
        yield
    finally:
        ray.shutdown()


def nodes_of(
    config: Config, hosts: Sequence[str], timeout_s: float, cluster: local.LocalCluster | None = None
) -> dict[str, Node]:
    """Wait until every host is a living Ray node."""
    ray_names = {host.name: host.ray_node or host.name for host in config.hosts}
    addresses: dict[str, str | None] = {host.name: host.address for host in config.hosts}
    if cluster is not None and cluster.testbed:
        # Ray's addresses there are those of the management network, which carries no smashed data.
        for place in cluster.domain().hosts:
            addresses[place.name] = addresses.get(place.name) or str(place.address)
    asked_cpus = {host.name: host.cpus for host in config.hosts}
    deadline = time.monotonic() + timeout_s
    while True:
        alive = {node["NodeName"]: node for node in ray_nodes() if node["Alive"]}
        missing = [host for host in hosts if ray_names.get(host, host) not in alive]
        if not missing:
            break
        if cluster is not None and (dead := cluster.dead_hosts()):
            raise ClusterError(f"host {dead[0].name}: its raylet ended while starting: {cluster.log_tail(dead[0])}")
        if time.monotonic() > deadline or cluster is None:
            # An existing cluster is not waited for: its nodes are there, or the name is wrong.
            raise ClusterError(
                f"host {missing[0]}: no living Ray node {ray_names.get(missing[0], missing[0])!r} in the cluster;"
                f" there are {', '.join(sorted(alive)) or 'none'}"
            )
        time.sleep(_POLL_S)
    result = {}
    for host in hosts:
        node = alive[ray_names.get(host, host)]
        cpus = asked_cpus.get(host) or int(node["Resources"].get("CPU", 1)) or 1
        address = addresses.get(host) or node["NodeManagerAddress"]
        result[host] = Node(host, node["NodeID"], address, cpus, node["MetricsExportPort"])
    return result


def ray_nodes() -> list[dict[str, Any]]:
    """The cluster's nodes, as Ray tells of them."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes
