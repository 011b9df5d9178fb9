"""A running chain as other commands see it: its agents, its path, and what its hosts tell."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from msl.actors import local
from msl.actors.agents import Agents, running_agents
from msl.actors.cluster import connected, connected_to
from msl.actors.runs import RunRecord
from msl.actors.steerer import Standing, standing
from msl.config import Config, from_yaml
from msl.errors import ClusterError, NetworkError
from msl.net.sfc.report import HostReport
from msl.plan import ChainPlan, lay_domain, lay_out

_RATE_S = 1.0


@dataclass(frozen=True)
class RunningChain:
    """A chain that somebody drives."""

    agents: Agents
    chain: ChainPlan
    config: Config

    def standing(self) -> Standing:
        """Its path now."""
        return standing(self.agents, self.chain)


@dataclass(frozen=True)
class View:
    """A chain and its SR domain at a moment."""

    chain: ChainPlan
    standing: Standing
    before: dict[str, HostReport]
    """By host, a moment before `now`: the difference gives rates."""
    now: dict[str, HostReport]


@contextlib.contextmanager
def attached(record: RunRecord) -> Iterator[RunningChain]:
    """This process beside the driver of a running chain; from within its network.

    Raises:
        MslError: the chain's hosts cannot be reached, or the chain is gone.
    """
    config = from_yaml(record.config)
    with contextlib.ExitStack() as stack:
        if record.cluster:
            cluster = cluster_of(record)
            stack.enter_context(connected(cluster))
            domain = cluster.domain()
        else:
            assert config.cluster.address is not None
            stack.enter_context(connected_to(config))
            domain = lay_domain(config, lay_out(config)[0])
        agents = running_agents(domain)
        if not agents.hosts:
            raise NetworkError(f"{record.name}: its hosts have no agents; has it just ended?")
        for chains in agents.call("chains").values():
            if record.chain in chains:
                yield RunningChain(agents, chains[record.chain], config)
                return
        raise NetworkError(f"{record.name}: its chain is gone; has it just ended?")


def cluster_of(record: RunRecord) -> local.LocalCluster:
    """The local cluster of a running chain.

    Raises:
        ClusterError: it is gone.
    """
    cluster = local.find(record.cluster)
    if cluster is None:
        raise ClusterError(f"{record.name}: its cluster {record.cluster!r} is gone")
    return cluster


def look(running: RunningChain) -> View:
    """A chain and its domain now, with what its links carry; takes a second."""
    before = running.agents.call("report")
    time.sleep(_RATE_S)
    return View(running.chain, running.standing(), before, running.agents.call("report"))
