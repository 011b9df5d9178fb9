"""What the parts of the benchmark run on: one testbed, one cluster, its agents, and chains that come and go."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File

from msl.actors.agents import Agents, find_agents, steered_chain
from msl.actors.cluster import Session
from msl.actors.controller import Controller, Watcher
from msl.actors.steerer import change_path, standing
from msl.config import Config
from msl.errors import NetworkError
from msl.net import netns
from msl.net.faults import set_rates
from msl.net.testbed import Testbed
from msl.plan import ChainPlan, Place
from msl.plan.paths import Path, mirrored

_TRIES = 5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Field:
    """The testbed and what runs on it."""

    config: Config
    session: Session
    testbed: Testbed
    hosts: Sequence[str]
    places: Sequence[Place]
    say: Say

    @contextlib.contextmanager
    def chain(self, rate_mbit: int | None) -> Iterator[tuple[ChainPlan, Agents]]:
        """A chain through the domain, whose links have this rate."""
        set_rates(self.testbed, rate_mbit)
        with steered_chain(self.config, self.session, self.hosts, self.places) as chain:
            assert chain is not None
            assert self.session.cluster is not None
            agents = find_agents(self.session.cluster.domain())
            if agents is None:
                raise NetworkError("an agent of the testbed is gone")
            yield chain, agents

    @contextlib.contextmanager
    def controlled(self, agents: Agents, chain: ChainPlan, watcher: Watcher | None = None) -> Iterator[Controller]:
        """A controller that steers a chain while the body runs."""
        config = self.config.model_copy(
            update={"steering": self.config.steering.model_copy(update={"policy": "least-loaded"})}
        )
        controller = Controller(agents, chain, config, watcher)
        controller.start()
        try:
            yield controller
        finally:
            controller.close()

    def lead(self, agents: Agents, chain: ChainPlan, router: str, urgent: bool = False) -> None:
        """Lead all hops of a chain through a router, both ways."""
        wanted: Path = mirrored([(router,)] * len(chain.stops))
        for tries_left in reversed(range(_TRIES)):
            now = standing(agents, chain)
            if now.path == wanted and (now.held or urgent):
                return
            try:
                change_path(agents, chain, now, wanted, "the benchmark", urgent=urgent)
                return
            except NetworkError:  # the controller was faster
                if not tries_left:
                    raise

    def counters(self) -> Counter:
        """What TCP has counted on all hosts so far."""
        total: dict[str, int] = {}
        for host in self.testbed.hosts:
            for name, count in netns.inside(host.netns, tcp_counters).items():
                total[name] = total.get(name, 0) + count
        return Counter(total)


@dataclass(frozen=True)
class Counter:
    """Counters of TCP."""

    values: Mapping[str, int]

    def since(self, before: Counter, name: str) -> int:
        """How often something has happened since another reading."""
        return self.values.get(name, 0) - before.values.get(name, 0)


def tcp_counters() -> dict[str, int]:
    """`TcpExt` and `Tcp` of this thread's network namespace."""
    found: dict[str, int] = {}
    for name in ("netstat", "snmp"):
        lines = File(f"/proc/thread-self/net/{name}").read_text().splitlines()
        for names, numbers in zip(lines[::2], lines[1::2], strict=False):
            if names.startswith(("TcpExt:", "Tcp:")):
                found |= dict(zip(names.split()[1:], map(int, numbers.split()[1:]), strict=True))
    return found
