"""Where a command stands before anything else: in the network of the cluster that it is for.

This module imports neither torch nor Ray. Both start threads when they are imported, and a process with threads
cannot enter a namespace.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from msl.actors import local
from msl.config import Config
from msl.errors import ClusterError, ConfigError
from msl.net import namespace, netns, testbed
from msl.net.requirements import first_lack
from msl.net.testbed import Testbed
from msl.plan import ChainPlan, lay_chain, lay_domain, lay_out

FabricName = Literal["sfc", "direct"]


@dataclass(frozen=True)
class Network:
    """Where this process stands."""

    kept: local.LocalCluster | None
    """The running local cluster that was joined."""
    private: bool
    """Whether this process has left the machine's own network."""
    fabric: FabricName
    """How smashed data will travel."""
    testbed: Testbed | None = None
    """The testbed that was built for a cluster yet to be started."""


@contextlib.contextmanager
def entered_network(config: Config, say: Callable[[str], None], keep: bool = False) -> Iterator[Network]:
    """Move this process to where the cluster is reached: the network of a running one, or a new one.

    Call it first, before anything starts a thread: a namespace belongs to a thread. A testbed that was built is
    removed in the end, unless `keep` is set and nothing failed.

    Raises:
        ClusterError: the running cluster is broken, or cannot be entered.
        ConfigError: the fabric that was asked for cannot be had.
    """
    network = _enter(config, say, keep)
    done = False
    try:
        yield network
        done = True
    finally:
        if network.testbed is not None and not (keep and done):
            testbed.remove(network.testbed.name)


def _enter(config: Config, say: Callable[[str], None], keep: bool) -> Network:
    if config.cluster.address is not None:
        return Network(None, False, _fabric_elsewhere(config, say))
    for name in local.stop_stale():
        say(f"removed what the crashed cluster {name!r} had left behind")
    kept = local.find(config.cluster.name)
    if kept is not None:
        if dead := kept.dead_hosts():
            raise ClusterError(
                f"the raylet of host {dead[0].name} of the running cluster {kept.name!r} is gone; restart the cluster"
                " with 'msl down' and 'msl up'"
            )
        fabric = _fabric_of(kept, config, say)
        join_network(kept)
        return Network(kept, kept.private, fabric)
    lack = _why_not_sfc(config)
    if lack is None:
        say("fabric sfc: SRv6 segment lists and transparent proxies, on a testbed of network namespaces")
        return _enter_testbed(config, keep)
    if config.fabric == "sfc":
        raise ConfigError(f"fabric: sfc: {lack}")
    say(f"fabric direct: plain TCP, because {lack}")
    if config.cluster.network == "host":
        say("cluster.network is 'host': Ray listens on all interfaces of this machine (it asks for its token)")
        return Network(None, False, "direct")
    reason = namespace.isolate()
    if reason is not None:
        say(f"no private network: {reason}; Ray listens on all interfaces of this machine (it asks for its token)")
    return Network(None, reason is None, "direct")


def planned_chain(config: Config) -> ChainPlan | None:
    """The chain as it would be steered if the job began now, as the domain's first; None with the fabric `direct`.

    Raises:
        ConfigError: the hosts cannot be steered through, and the configuration says `sfc`.
    """
    if config.fabric == "auto":
        elsewhere = config.cluster.address is not None
        if not all(host.interfaces for host in config.hosts) if elsewhere else _why_not_sfc(config) is not None:
            return None
    elif config.fabric == "direct":
        return None
    hosts, places = lay_out(config)
    return lay_chain(config, lay_domain(config, hosts), places, 1)


def join_network(cluster: local.LocalCluster) -> None:
    """Move this process into a running cluster's network.

    Raises:
        ClusterError: the cluster's head is gone, or the network cannot be entered.
    """
    if cluster.private:
        namespace.join(cluster.hosts[0].pid)


def _enter_testbed(config: Config, keep: bool) -> Network:
    hosts, _ = lay_out(config)
    name = config.cluster.name if keep else f"{config.cluster.name}-{os.getpid()}"
    if keep:
        testbed.remove(name)  # of an `msl up` that was killed before it had a cluster
    built = testbed.build(name, lay_domain(config, hosts), config.testbed)
    try:
        namespace.enter(netns.netns_path(built.hosts[0].netns))
    except BaseException:
        testbed.remove(name)
        raise
    return Network(None, True, "sfc", built)


def _why_not_sfc(config: Config) -> str | None:
    """Why a local cluster of this configuration cannot have the fabric `sfc`; None if it can."""
    if config.fabric == "direct":
        return "the configuration says so"
    if config.cluster.network == "host":
        return "cluster.network is 'host', and the testbed is a network of its own"
    hosts, places = lay_out(config)
    try:
        lay_chain(config, lay_domain(config, hosts), places, 1)
    except ConfigError as error:
        if config.fabric == "sfc":
            raise
        return str(error)
    lack = first_lack()
    return None if lack is None else f"{lack.need} is missing ({lack.found}); {lack.remedy}"


def _fabric_of(kept: local.LocalCluster, config: Config, say: Callable[[str], None]) -> FabricName:
    if config.fabric == "sfc" and not kept.testbed:
        raise ConfigError(
            f"fabric: sfc: the running cluster {kept.name!r} was started without it; end it with 'msl down'"
        )
    fabric: FabricName = "sfc" if kept.testbed and config.fabric != "direct" else "direct"
    say(f"fabric {fabric}: {'as the configuration says' if config.fabric != 'auto' else 'what the cluster has'}")
    return fabric


def _fabric_elsewhere(config: Config, say: Callable[[str], None]) -> FabricName:
    without = [host.name for host in config.hosts if not host.interfaces]
    if config.fabric == "direct" or (config.fabric == "auto" and without):
        reason = "the configuration says so" if config.fabric == "direct" else f"{without[0]} has no 'interfaces'"
        say(f"fabric direct: plain TCP, because {reason}")
        return "direct"
    if without:
        raise ConfigError(f"fabric: sfc: host {without[0]} has no 'interfaces' to the SR domain; name them in hosts")
    say("fabric sfc: SRv6 segment lists and transparent proxies, on the hosts' own interfaces")
    return "sfc"
