"""The preflight of a cluster: what each host tells of itself, and what it reaches of the others."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

import ray

from msl.actors.cluster import Node, Session, session
from msl.actors.expectation import LOCAL_RESTART, Expectation, domain_of, expectations
from msl.actors.network import Network
from msl.actors.probes import Probes, running_probes
from msl.actors.sid_check import SidCheck, running_agents, started_agents
from msl.config import Config
from msl.errors import MslError
from msl.net import host_facts
from msl.net.host_facts import THIS_MACHINE, HostFacts
from msl.net.probe import check_reach
from msl.net.requirements import Check
from msl.net.sfc.report import HostReport
from msl.plan import DomainPlan, lay_out

_LOOK_S = 60.0
"""Longest wait until all probes have started and looked at their hosts."""
_CLOCK_READINGS = 5


@dataclass(frozen=True)
class Finding:
    """A judgement, and on which host or hosts."""

    where: str
    check: Check


@dataclass
class Examination:
    """What was found."""

    hosts: list[Finding] = field(default_factory=list)
    """Of each host by itself."""
    pairs: list[Finding] = field(default_factory=list)
    """Of what hosts reach of each other."""
    remarks: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""


def examine(config: Config, network: Network, start: bool, say: Callable[[str], None]) -> Examination:
    """Look at all hosts of a cluster. A host that is dead is a finding, not an error.

    Args:
        config: the job whose hosts they are.
        network: where this process stands. If no cluster was found there, one is started for the time of the check.
        start: also start the SFC agents that are not running, for the same time.
        say: told what is done.

    Raises:
        ClusterError: the cluster did not start, or cannot be reached.
    """
    kept = network.kept
    hosts = [host.name for host in kept.hosts] if kept is not None else lay_out(config)[0]
    if kept is not None and kept.hosts[0] in kept.dead_hosts():
        gone = [Finding(host.name, _dead(host.name, LOCAL_RESTART)) for host in kept.dead_hosts()]
        return Examination(gone, remarks=["the head is gone, and without it Ray tells nothing of the other hosts"])
    is_new = kept is None and config.cluster.address is None
    # Of a cluster that is running no host is demanded here: which ones it lacks is to be found out.
    with session(config, hosts if is_new else (), network, say) as joined, contextlib.ExitStack() as undo:
        found = Examination()
        expected = expectations(config, joined, hosts)
        joined = replace(joined, nodes=_living_nodes(expected, joined, found))
        domain = domain_of(config, joined, hosts)
        if start and domain is not None and joined.fabric == "sfc":
            try:
                undo.enter_context(started_agents(config, joined, domain))
            except MslError as error:
                found.hosts.append(Finding("all", Check("SFC agents start", False, str(error), "as it says")))
        probes = undo.enter_context(running_probes(joined.nodes))
        _Examiner(expected, joined, domain, probes, found).examine()
        order = [*hosts, THIS_MACHINE]
        found.hosts.sort(key=lambda finding: order.index(finding.where) if finding.where in order else -1)
        return found


def _living_nodes(expected: Mapping[str, Expectation], joined: Session, found: Examination) -> dict[str, Node]:
    listed: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    gone = joined.dead_hosts()  # Ray itself takes its time to notice
    alive = {node["NodeName"]: node for node in listed if node["Alive"] and node["NodeName"] not in gone}
    nodes = {}
    for host, its in expected.items():
        node = alive.get(its.ray_node)
        if node is None:
            found.hosts.append(Finding(host, _dead(its.ray_node, its.restart, sorted(alive))))
            continue
        address = node["NodeManagerAddress"]
        found.hosts.append(Finding(host, Check(f"Ray node {its.ray_node!r}", True, f"alive at {address}", "")))
        nodes[host] = Node(host, node["NodeID"], its.address or address, 1, node["MetricsExportPort"])
    return nodes


def _dead(ray_node: str, remedy: str, alive: Sequence[str] = ()) -> Check:
    others = f"; alive are {', '.join(alive)}" if alive else ""
    return Check(f"Ray node {ray_node!r}", False, f"dead or missing{others}", remedy)


class _Examiner:
    """Asks the probes and the agents of the hosts that live, and judges their answers."""

    def __init__(
        self,
        expected: Mapping[str, Expectation],
        joined: Session,
        domain: DomainPlan | None,
        probes: Probes,
        found: Examination,
    ) -> None:
        self._expected = expected
        self._nodes = joined.nodes
        self._domain = domain if joined.fabric == "sfc" else None
        self._is_local = joined.cluster is not None
        self._probes = probes
        self._found = found
        self._with_agent: list[str] = []

    def examine(self) -> None:
        """Look at everything that can be looked at."""
        facts = self._look()
        self._judge(facts)
        reports: dict[str, HostReport] = {}
        if self._domain is not None and facts:
            agents, self._with_agent = running_agents(self._domain, list(facts))
            for host in self._with_agent:
                with contextlib.suppress(MslError):
                    reports[host] = agents.call("report", hosts=[host])[host]
            self._judge_agents(facts, reports)
        self._look_at_addresses(facts)
        if self._domain is not None and reports:
            sids = SidCheck(self._domain, agents, reports, self._probes)
            for host, checks in sids.waypoints().items():
                self._add(host, *checks)
            for (here, there), checks in sids.pairs().items():
                self._add_pair(here, there, *checks)

    def _look(self) -> dict[str, HostFacts]:
        sfc = self._domain is not None
        questions = {host: (host, (self._expected[host].interfaces, sfc)) for host in self._nodes}
        facts, silent = self._probes.ask("look", questions, _LOOK_S)
        for host, reason in silent.items():
            remedy = "install the msl of this machine there, for the Python that its Ray runs in"
            self._add(host, Check("a probe runs", False, reason, remedy))
        return facts

    def _judge(self, facts: Mapping[str, HostFacts]) -> None:
        by_host = {host: told.versions for host, told in facts.items()}
        compared = host_facts.check_versions(by_host, host_facts.versions())
        for host, told in facts.items():
            readings = [reading for _ in range(_CLOCK_READINGS) if (reading := self._probes.clock(host)) is not None]
            self._add(host, compared[host], *([host_facts.check_clock(readings)] if readings else []))
            lacks = [check for check in told.needs if not check.ok]
            if told.needs and not lacks:
                lacks = [Check("needs of the fabric sfc", True, f"all {len(told.needs)}; Linux {told.kernel}", "")]
            self._add(host, *lacks, *host_facts.check_links(told.links, self._expected[host].least_mtu))
        if THIS_MACHINE in compared:
            self._add(THIS_MACHINE, compared[THIS_MACHINE])

    def _judge_agents(self, facts: Mapping[str, HostFacts], reports: Mapping[str, HostReport]) -> None:
        if not self._with_agent:
            self._found.remarks.append(
                "no SFC agent is running, so SIDs and waypoints are not tried: the first job starts the agents, or"
                " --start for the time of this check"
            )
            return
        for host in facts:
            if host in reports:
                report = reports[host]
                told = f"running, inner MTU {report.inner_mtu}, SIDs: {len(report.sids)}, flows: {report.num_flows}"
                self._add(host, Check("SFC agent", True, told, ""))
                continue
            told = "does not answer" if host in self._with_agent else "not running, though others are"
            restart = self._expected[host].restart if self._is_local else "the next msl train starts it"
            self._add(host, Check("SFC agent", False, told, restart))

    def _look_at_addresses(self, facts: Mapping[str, HostFacts]) -> None:
        addresses = {host: ip_address(self._nodes[host].address) for host in facts}
        ports, deaf = self._probes.ask("listen", {host: (host, (str(addresses[host]),)) for host in facts})
        for host, reason in deaf.items():
            if self._domain is not None and not self._is_local and host not in self._with_agent:
                self._found.remarks.append(
                    f"host {host} is not tried to be reached: its SFC agent gives it its address"
                )
            else:
                remedy = "correct its 'address' in hosts" if self._domain is None else self._expected[host].restart
                self._add(host, Check("address for the others", False, reason, remedy))
        mtus = {host: self._mtu_of(host, facts[host]) for host in ports}
        questions = {
            (here, there): (
                here,
                (addresses[here], addresses[there], ports[there], min(mtus[here], mtus[there]) or None),
            )
            for here, there in itertools.permutations(ports, 2)
        }
        reached, silent = self._probes.reach(questions)
        for here, there in questions:
            if (here, there) in reached:
                check = check_reach(here, there, addresses[there], reached[here, there])
            else:
                check = Check(
                    f"packets to {addresses[there]}", False, silent[here, there], f"look at {here}; try again"
                )
            self._add_pair(here, there, check)

    def _mtu_of(self, host: str, facts: HostFacts) -> int:
        """Of the host's way to the others; 0 if only the kernel can say."""
        return self._expected[host].mtu or min((link.mtu for link in facts.links if link.mtu), default=0)

    def _add(self, host: str, *checks: Check) -> None:
        self._found.hosts.extend(Finding(host, check) for check in checks)

    def _add_pair(self, here: str, there: str, *checks: Check) -> None:
        self._found.pairs.extend(Finding(f"{here} -> {there}", check) for check in checks)
