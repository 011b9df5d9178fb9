"""Chains on a testbed with all that a job would bring, but for the model: proxies, pass-through NSFs, both ends.

`Chains` is an SR domain whose hosts have their agents; `Chains.open` puts a chain on it. Everything that runs is a
process of its own in its host's namespace, ended by its number.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import IO, Any, TypeVar

from msl.config import Config, TestbedConfig
from msl.net import testbed
from msl.net.netns import inside
from msl.net.sfc.agent import HostAgent
from msl.net.sfc.fabric import SfcFabric
from msl.net.sfc.layout import FlowKey
from msl.net.testbed import Testbed
from msl.plan import lay_out
from msl.plan.addressing import SegmentList
from msl.plan.steering import ChainPlan, DomainPlan, Stop, lay_chain, lay_domain
from tests.net.nodes import some_name

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
UNLIMITED = TestbedConfig(rate_mbit=None)
Drops = dict[str, dict[str, int]]


def lay(
    nsfs: Sequence[str] = ("n1", "n2"),
    *,
    hosts: int = 4,
    number: int = 1,
    via: str | tuple[str | None, ...] | None = None,
    planes: int = 2,
    max_segments: int = 12,
) -> tuple[DomainPlan, ChainPlan]:
    """A domain of hosts n0, n1, ..., and a chain from the first to the last of them."""
    config = Config.model_validate(
        {
            "model": {"factory": "a:b"},
            "data": {"factory": "a:b"},
            "split": {"stages": len(nsfs) + 2},
            "hosts": [f"n{index}" for index in range(hosts)],
            "chain": {"nsfs": list(nsfs)},
            "sr": {"via": via, "max_segments": max_segments},
            "testbed": {"planes": planes},
        }
    )
    names, places = lay_out(config)
    domain = lay_domain(config, names)
    return domain, lay_chain(config, domain, places, number)


def path(domain: DomainPlan, chain: ChainPlan, *via: str | Sequence[str] | None) -> SegmentList:
    """A segment list of the chain: for each stop, the router or routers before it."""
    ways = via * len(chain.stops) if len(via) == 1 else via
    segments = []
    for stop, way in zip(chain.stops, ways, strict=True):
        routers = [way] if isinstance(way, str) else way or []
        segments += [*(domain.router(router).sid for router in routers), stop.sid]
    return tuple(segments)


class Process:
    """A process in a namespace; what it writes is kept in a file."""

    def __init__(self, netns: str, command: Sequence[str], fds: tuple[int, ...] = ()) -> None:
        self._output: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._command = " ".join(command[-8:])
        self._popen = inside(
            netns,
            lambda: subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=self._output, stderr=self._output, pass_fds=fds
            ),
        )

    def output(self) -> str:
        self._output.flush()
        # The position is the process's own, too.
        return Path(f"/proc/self/fd/{self._output.fileno()}").read_text()

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; its status."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout_s} s: {self._command}\n{self.output()}") from None

    def is_running(self) -> bool:
        return self._popen.poll() is None

    def end_input(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def end(self) -> None:
        self.end_input()
        self._popen.kill()
        self._popen.wait()
        self._output.close()


class Load(Process):
    """The client of a chain; see `tests.net.traffic`."""

    def __init__(self, chain: OpenChain, command: Sequence[str]) -> None:
        super().__init__(chain.chains.netns(chain.plan.source), command)
        self._chain = chain

    def reports(self) -> list[dict[str, Any]]:
        """What has been done so far; fails if anything has failed."""
        lines = [json.loads(line) for line in self.output().splitlines() if line.startswith("{")]
        failures = [line["failure"] for line in lines if "failure" in line]
        if failures or self._chain.output():
            raise AssertionError(self._chain.autopsy([*failures, *self._chain.output().splitlines()]))
        return lines

    def finish(self, timeout_s: float, meanwhile: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
        """Wait for all connections; their reports. `meanwhile` is called once a second."""
        deadline = time.monotonic() + timeout_s
        called = 0.0
        while self.is_running():
            self.reports()
            if time.monotonic() > deadline:
                raise AssertionError(self._chain.autopsy([f"not done after {timeout_s} s"]))
            if time.monotonic() > called + 1:
                meanwhile()
                called = time.monotonic()
            time.sleep(0.05)
        reports = self.reports()
        assert self.wait(0) == 0, self.output()
        return reports


@dataclass
class OpenChain:
    """A chain with its NSFs and its sink."""

    chains: Chains
    plan: ChainPlan
    processes: list[Process]

    def load(self, count: int, num_bytes: int, *, parallel: int = 1, stall_s: float = 10.0) -> Load:
        """Start a client; `count` of 0 goes on until its input ends."""
        address, port = str(self.plan.service), self.plan.port
        numbers = [str(number) for number in (port, count, parallel, num_bytes, stall_s)]
        command = [sys.executable, "-m", "tests.net.traffic", "client", address, *numbers]
        load = Load(self, command)
        self.processes.append(load)
        return load

    def steer(self, segments: SegmentList) -> None:
        agent = self.chains.agents[self.plan.source]
        self.chains.inside(self.plan.source, lambda: agent.steer(self.plan.number, segments))

    def autopsy(self, reasons: Sequence[str]) -> str:
        """The reasons, and what helps to tell why: all sockets, or those of the connections that are named."""
        ports = {f":{port} " for reason in reasons for port in re.findall(r"port (\d+)", reason)}
        told = [*reasons, f"drops {self.chains.drops()}"]
        for host in self.chains.agents:
            command = ["ip", "netns", "exec", self.chains.netns(host), "ss", "-tinmOH", "exclude", "time-wait"]
            listed = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.splitlines()
            told += [f"{host}: {line}" for line in listed if not ports or any(port in line for port in ports)]
        return "\n".join(told)

    def output(self) -> str:
        """What NSFs and sink had to say: nothing, if all went well."""
        return "".join(process.output() for process in self.processes if not isinstance(process, Load))


@dataclass
class Chains:
    """An SR domain on a testbed, with its hosts' agents."""

    domain: DomainPlan
    bed: Testbed
    agents: dict[str, HostAgent] = field(default_factory=dict)

    def netns(self, node: str) -> str:
        """Namespace of a host or router."""
        return dict(self.bed.routers).get(node) or next(host.netns for host in self.bed.hosts if host.name == node)

    def inside(self, node: str, call: Callable[[], T]) -> T:
        return inside(self.netns(node), call)

    @contextlib.contextmanager
    def open(
        self, plan: ChainPlan, *, copy: bool = False, sink: bool = True, may_complain: bool = False
    ) -> Iterator[OpenChain]:
        """Put a chain on the domain.

        Args:
            plan: the chain.
            copy: the NSFs copy what passes, instead of splicing it.
            sink: with a sink; else another server is to be started at the service's address.
            may_complain: NSFs and sink may complain, as of connections that were reset.
        """
        for host, agent in self.agents.items():
            self.inside(host, lambda agent=agent: agent.add_chain(plan))  # type: ignore[misc]
        running = OpenChain(self, plan, [])
        try:
            for stop in plan.stops if sink else plan.stops[:-1]:
                running.processes.append(self._start(plan, stop, ["--copy"] if copy else []))
            yield running
            assert may_complain or running.output() == ""
        finally:
            for process in running.processes:
                process.end()
            for host, agent in self.agents.items():
                self.inside(host, lambda agent=agent: agent.remove_chain(plan.number))  # type: ignore[misc]

    def _start(self, plan: ChainPlan, stop: Stop, options: list[str]) -> Process:
        listener = self.inside(stop.host, SfcFabric(plan, stop.hop).listen)
        with listener:
            fd = listener.fileno()
            program = ["tests.net.traffic", "sink"] if stop is plan.stops[-1] else ["tests.net.relay"]
            return Process(self.netns(stop.host), [sys.executable, "-m", *program, str(fd), *options], (fd,))

    def drops(self) -> Drops:
        """Packets dropped so far, by host and reason; without zeros."""
        every = {
            host: {reason: count for reason, count in agent.proxy.drops().items() if count}
            for host, agent in self.agents.items()
        }
        return {host: drops for host, drops in every.items() if drops}

    def flows(self, host: str) -> dict[tuple[IPv6Address, int], int]:
        """Clients of a host's flows, established or not, and the number of each one's path."""
        proxy = self.agents[host].proxy
        entries: list[tuple[FlowKey, Any]] = [*proxy.table("flows").items(), *proxy.table("embryos").items()]
        return {(key.client.ip, key.ports[0]): flow.path for key, flow in entries}

    def sweep(self) -> int:
        """Let all agents sweep; how many flows and paths there still are."""
        left = 0
        for host, agent in self.agents.items():
            self.inside(host, agent.sweep)
            left += sum(len(agent.proxy.table(name).keys()) for name in ("flows", "embryos", "paths"))
        return left

    def wait_until_forgotten(self, timeout_s: float = 15.0) -> None:
        """Sweep once a second until no flow and no path is left."""
        deadline = time.monotonic() + timeout_s
        while left := self.sweep():
            assert time.monotonic() < deadline, f"{left} flows and paths are left"
            time.sleep(1)

    def checksum_errors(self) -> int:
        """Segments with a wrong checksum that the hosts' TCP has received."""
        return sum(self.inside(host, lambda: _tcp_counter("InCsumErrors")) for host in self.agents)


def _tcp_counter(name: str) -> int:
    # /proc/net would show the namespace of the process, not of the thread.
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index(name)])


@contextlib.contextmanager
def running(domain: DomainPlan, settings: TestbedConfig = UNLIMITED) -> Iterator[Chains]:
    """A testbed for this domain, its hosts with their proxies."""
    with some_name() as name:
        chains = Chains(domain, testbed.build(name, domain, settings))
        try:
            for host in chains.bed.hosts:
                agent = HostAgent(domain, host.name, host.interfaces)
                inside(host.netns, agent.apply)
                chains.agents[host.name] = agent
            yield chains
        finally:
            for host in chains.bed.hosts:
                if host.name in chains.agents:
                    inside(host.netns, chains.agents[host.name].undo)
