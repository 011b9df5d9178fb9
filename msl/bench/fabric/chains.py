"""Chains of the benchmark through the testbed's SR domain, set up and leased while it runs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence

from msl.actors.agents import Agents, start_agents
from msl.actors.cluster import Session
from msl.config import Config
from msl.errors import MslError
from msl.plan import ChainPlan, Place

log = logging.getLogger(__name__)

_RENEW_S = 20.0
"""A third of a lease: seldom, for a renewal takes CPU time that a sample may be measuring."""
_STOP_S = 30.0


@contextlib.contextmanager
def steered_chains(
    config: Config, session: Session, hosts: Sequence[str], wanted: Mapping[str, Sequence[Place]]
) -> Iterator[dict[str, ChainPlan]]:
    """Set chains up, by name; they are removed in the end.

    Args:
        config: without a service address, so that each chain has its own.
        session: the cluster.
        hosts: names of all hosts of the configuration.
        wanted: places of each chain's members.

    Raises:
        NetworkError: what a host refuses.
    """
    agents = start_agents(config, session, hosts)
    chains: dict[str, ChainPlan] = {}
    over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(agents, chains, over), name="bench-lease", daemon=True)
    try:
        for name, places in wanted.items():
            chains[name] = agents.open_chain(config, places)
        keeper.start()
        yield chains
    finally:
        over.set()
        if keeper.is_alive():
            keeper.join(timeout=_STOP_S)
        for chain in chains.values():
            agents.close_chain(chain)


def ends_of(places: Sequence[Place]) -> tuple[Place, Place]:
    """A chain's source and sink as a chain of their own, without any NSF."""
    source, sink = places[0], places[-1]
    return source, Place(1, sink.name, sink.role, sink.host, sink.stage)


def _keep(agents: Agents, chains: Mapping[str, ChainPlan], over: threading.Event) -> None:
    while not over.wait(_RENEW_S):
        for name, chain in chains.items():
            try:
                agents.call("renew", chain)
            except MslError as error:
                if not over.is_set():
                    log.warning("chain %s: %s", name, error)
