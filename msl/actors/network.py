"""Where a command stands before anything else: in the network of the cluster that it is for.

This module imports neither torch nor Ray. Both start threads when they are imported, and without root a process
with threads cannot enter a namespace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msl.actors import local
from msl.config import Config
from msl.errors import ClusterError
from msl.net import namespace


@dataclass(frozen=True)
class Network:
    """Where this process stands after `enter_network`."""

    kept: local.LocalCluster | None
    """The running local cluster that was joined."""
    private: bool
    """Whether this process has left the machine's own network."""


def enter_network(config: Config, say: Callable[[str], None]) -> Network:
    """Move this process to where the cluster is reached: the namespace of a running one, or a new one.

    Call it first, before anything starts a thread: a namespace belongs to a thread.

    Raises:
        ClusterError: the running cluster is broken, or cannot be entered.
    """
    if config.cluster.address is not None:
        return Network(None, False)
    for name in local.stop_stale():
        say(f"removed what the crashed cluster {name!r} had left behind")
    kept = local.find(config.cluster.name)
    if kept is not None:
        if dead := kept.dead_hosts():
            raise ClusterError(
                f"the raylet of host {dead[0].name} of the running cluster {kept.name!r} is gone; restart the cluster"
                " with 'msl down' and 'msl up'"
            )
        join_network(kept)
        return Network(kept, kept.private)
    if config.cluster.network == "host":
        say("cluster.network is 'host': Ray listens on all interfaces of this machine (it asks for its token)")
        return Network(None, False)
    reason = namespace.isolate()
    if reason is not None:
        say(f"no private network: {reason}; Ray listens on all interfaces of this machine (it asks for its token)")
    return Network(None, reason is None)


def join_network(cluster: local.LocalCluster) -> None:
    """Move this process into a running cluster's network.

    Raises:
        ClusterError: the cluster's head is gone, or the network cannot be entered.
    """
    if cluster.private:
        namespace.join(cluster.hosts[0].pid)
