"""A chain that is steered while it runs: by a controller if the configuration has one, and found by `msl steer`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from msl.actors import runs
from msl.actors.agents import running_agents
from msl.actors.cluster import Session
from msl.actors.controller import Controller, Watcher
from msl.config import Config
from msl.plan import ChainPlan, DomainPlan, lay_domain, lay_out


def domain_of(config: Config, session: Session) -> DomainPlan:
    """The SR domain that a job's hosts are in: that of the kept cluster, if there is one."""
    if session.cluster is not None:
        return session.cluster.domain()
    return lay_domain(config, lay_out(config)[0])


@contextlib.contextmanager
def steering(
    config: Config, session: Session, chain: ChainPlan | None, folder: Path | None, watcher: Watcher | None = None
) -> Iterator[None]:
    """Let a chain's path change while the body runs.

    Args:
        config: of its job.
        session: the cluster.
        chain: the chain; None with the fabric `direct`, which has no paths.
        folder: of the run, by which people name it.
        watcher: told what a controller does.
    """
    if chain is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(runs.published(runs.record_of(config, session, chain, folder)))
        if config.steering.policy != "static":
            controller = Controller(running_agents(domain_of(config, session)), chain, config, watcher)
            controller.start()
            stack.callback(controller.close)
        yield
