"""The SFC agents of a cluster as a preflight needs them, and whether all SIDs and waypoints lead to their proxies."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv6Address

import ray

from msl.actors.agents import NAMESPACE, Agents, agent_name, start_agents
from msl.actors.cluster import Session
from msl.actors.probes import Probes
from msl.config import Config
from msl.errors import MslError
from msl.net.requirements import Check
from msl.net.sfc.report import HostReport
from msl.net.sid_probe import Knock, unproven
from msl.plan import DomainPlan
from msl.plan.addressing import Sid


class SidCheck:
    """Tries the SIDs of a domain.

    Args:
        domain: the SR domain.
        agents: its running agents.
        reports: what those tell that answer.
        probes: probes on their hosts.
    """

    def __init__(self, domain: DomainPlan, agents: Agents, reports: Mapping[str, HostReport], probes: Probes) -> None:
        self._domain = domain
        self._agents = agents
        self._reports = reports
        self._probes = probes

    def pairs(self) -> dict[tuple[str, str], list[Check]]:
        """From each host, the SIDs of each other one."""
        knocks = {
            (here, there): [Knock(here, there, Sid(IPv6Address(each.sid))) for each in self._reports[there].sids]
            for here, there in itertools.permutations(self._reports, 2)
        }
        failed = unproven([each for group in knocks.values() for each in group], self._send, self._drops)
        return {pair: self._judge_pair(group, failed) for pair, group in knocks.items()}

    def waypoints(self) -> dict[str, list[Check]]:
        """From each host through each router and back: no other host can spoil that."""
        knocks = {
            host: [Knock(host, host, self._domain.host(host).decap, router) for router in self._domain.routers]
            for host in self._reports
        }
        failed = unproven([each for group in knocks.values() for each in group], self._send, self._drops)
        return {host: self._judge_waypoints(group, failed) for host, group in knocks.items() if group}

    def _judge_pair(self, knocks: Sequence[Knock], failed: Mapping[Knock, str]) -> list[Check]:
        checks = []
        for each in knocks:
            if each in failed:
                device = ", ".join(link.interface for link in self._reports[each.target].links)
                remedy = (
                    f"on {each.prober}, 'ip route get {each.sid}' must lead to {each.target}; there, 'tc filter show"
                    f" dev {device.partition(',')[0]} ingress' must list msl-ingress (else start the agent again)"
                )
                checks.append(Check(f"SID {each.sid}", False, failed[each], remedy))
        count = len(knocks)
        told = ", ".join(str(each.sid) for each in knocks[:2]) + (f" and {count - 2} more" if count > 2 else "")
        return checks or [Check("SIDs", True, f"lead to its proxy: {told}", "")]

    def _judge_waypoints(self, knocks: Sequence[Knock], failed: Mapping[Knock, str]) -> list[Check]:
        checks = []
        for each in knocks:
            assert each.via is not None  # all of them have one here
            if each in failed:
                remedy = (
                    f"on {each.via.name}: sysctl -w net.ipv6.conf.all.forwarding=1; ip -6 route add {each.via.sid}"
                    f" encap seg6local action End dev LINK; and a route to the locator of {each.prober}"
                )
                found = f"{failed[each]} through it"
                checks.append(Check(f"waypoint {each.via.name} ({each.via.sid})", False, found, remedy))
        names = ", ".join(each.via.name for each in knocks if each.via is not None)
        return checks or [Check(f"waypoints {names}", True, "what is sent through them comes back", "")]

    def _send(self, knocks: Sequence[Knock]) -> dict[Knock, str]:
        questions = {
            each: (
                each.prober,
                (self._domain.host(each.prober).address, each.sid, each.via.sid if each.via is not None else None),
            )
            for each in knocks
        }
        return self._probes.ask("knock", questions)[1]

    def _drops(self, hosts: Sequence[str]) -> dict[str, Mapping[str, int]]:
        drops = {}
        for host in hosts:
            with contextlib.suppress(MslError):
                report: HostReport = self._agents.call("report", hosts=[host])[host]
                drops[host] = report.drops
        return drops


def running_agents(domain: DomainPlan, hosts: Sequence[str]) -> tuple[Agents, list[str]]:
    """The agents that are running on some hosts of a domain, and the hosts that have one."""
    actors = {}
    for host in hosts:
        with contextlib.suppress(ValueError):
            actors[host] = ray.get_actor(agent_name(host), namespace=NAMESPACE)
    return Agents(domain, actors), list(actors)


@contextlib.contextmanager
def started_agents(config: Config, joined: Session, domain: DomainPlan) -> Iterator[None]:
    """Start the agents that are not running, as a job does; in the end they are removed again.

    Raises:
        MslError: what a host refuses.
    """
    _, before = running_agents(domain, list(joined.nodes))
    missing = [host for host in joined.nodes if host not in before]
    try:
        if missing:
            start_agents(config, joined, [host.name for host in domain.hosts])
        yield
    finally:
        ours, _ = running_agents(domain, missing)
        with contextlib.suppress(MslError):
            # A job that has come meanwhile goes on using them.
            if not any(ours.call("chains").values()):
                ours.remove()
