"""What a configuration says of the hosts of a running cluster, as a preflight compares it with what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msl.actors.cluster import Session
from msl.actors.local import CONFIG_FILE
from msl.config import Config, HostConfig, load_config
from msl.plan import DomainPlan, lay_domain

LOCAL_RESTART = "msl down, then msl up"
_LEAST_INNER_MTU = 1280  # RFC 8200 section 5


@dataclass(frozen=True)
class Expectation:
    """What the configuration says of a host."""

    ray_node: str
    """Name of its Ray node."""
    address: str | None
    """At which the others reach it; None for that of its Ray node."""
    interfaces: tuple[str, ...]
    """Those that lead to the SR domain."""
    mtu: int
    """Of its way to the others; 0 if the configuration does not say."""
    least_mtu: int
    """That each interface must have at least."""
    restart: str
    """The command that brings its Ray node back."""


def domain_of(config: Config, joined: Session, hosts: Sequence[str]) -> DomainPlan | None:
    """The SR domain that the hosts are in; None if there is none."""
    if joined.cluster is not None:
        return joined.cluster.domain() if joined.cluster.testbed else None
    return lay_domain(config, hosts) if joined.fabric == "sfc" else None


def expectations(config: Config, joined: Session, hosts: Sequence[str]) -> dict[str, Expectation]:
    """What is expected of each host.

    Args:
        config: the job's configuration.
        joined: the cluster.
        hosts: names of all hosts.
    """
    cluster = joined.cluster
    domain = domain_of(config, joined, hosts)
    least = _LEAST_INNER_MTU + domain.overhead if domain is not None and joined.fabric == "sfc" else 0
    told = {host.name: host for host in config.hosts}
    links_mtu = 0
    if cluster is not None and cluster.testbed:
        links_mtu = load_config(Path(cluster.folder) / CONFIG_FILE).testbed.mtu
    interfaces = {host.name: host.interfaces for host in (cluster.hosts if cluster is not None else config.hosts)}
    found = {}
    for name in hosts:
        host = told.get(name) or HostConfig(name=name)
        ray_node, restart = name, LOCAL_RESTART
        if cluster is None:
            ray_node = host.ray_node or name
            restart = f"ray start --address={config.cluster.address} --node-name={ray_node}"
        address = str(domain.host(name).address) if domain is not None else host.address
        mtu = host.mtu or links_mtu
        found[name] = Expectation(ray_node, address, interfaces.get(name, ()), mtu, max(mtu, least), restart)
    return found
