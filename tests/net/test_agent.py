"""The host agent: takes over what runs, without breaking it, and leaves nothing of its own behind."""

from __future__ import annotations

import dataclasses
import subprocess
from typing import Any

import pytest

from msl.errors import NetworkError
from msl.net.sfc import proxy, sysctl
from msl.net.sfc.agent import HostAgent
from msl.net.sfc.layout import Kind
from tests.net.chain import Chains, lay, running

pytestmark = pytest.mark.root


def state_of(netns: str) -> str:
    """All that an agent may change on a host, as text."""
    commands = [
        "ip -6 rule",
        "ip -6 route show table all | grep -v fe80",
        "ip -o link | sed 's/^[0-9]*: //'",
        "ip -6 addr show scope global",
        "tc qdisc show",
        "for i in $(ls /sys/class/net); do tc filter show dev $i ingress; tc filter show dev $i egress; done",
        "sysctl net.ipv4.tcp_tw_reuse net.ipv6.conf.all.forwarding",
        "ip sr tunsrc show",
    ]
    run = subprocess.run(
        ["ip", "netns", "exec", netns, "sh", "-c", "; ".join(commands)], capture_output=True, text=True, timeout=20
    )
    return run.stdout


def restarted(chains: Chains, host: str) -> HostAgent:
    """Another agent for a host, as if its process had been restarted."""
    there = next(each for each in chains.bed.hosts if each.name == host)
    return HostAgent(chains.domain, host, there.interfaces)


def test_undo_leaves_the_host_as_it_was_also_by_another_agent() -> None:
    domain, plan = lay(("n1", "n1"))
    with running(domain) as chains:
        for agent in chains.agents.values():
            chains.inside(agent.host.name, agent.undo)
        before = {host: state_of(chains.netns(host)) for host in chains.agents}
        for host, agent in chains.agents.items():
            chains.inside(host, agent.apply)
            chains.inside(host, lambda agent=agent: agent.add_chain(plan))  # type: ignore[misc]
            assert state_of(chains.netns(host)) != before[host]
        for host in chains.agents:
            # Its process is gone: only the kernel knows what was made.
            removed = chains.inside(host, restarted(chains, host).undo)
            assert any("msl-ingress" in what for what in removed)
            assert state_of(chains.netns(host)) == before[host]
            assert chains.inside(host, restarted(chains, host).undo) == []


def test_a_chain_that_is_removed_leaves_the_host_as_it_was() -> None:
    domain, plan = lay()
    with running(domain) as chains:
        before = {host: state_of(chains.netns(host)) for host in chains.agents}
        with chains.open(plan) as chain:
            chain.load(3, 10_000).finish(20)
        assert {host: state_of(chains.netns(host)) for host in chains.agents} == before
        for agent in chains.agents.values():
            kinds = sorted(entry.kind for _, entry in agent.proxy.table("sids").items())
            assert kinds == [Kind.HEAD, Kind.TURN, Kind.PROBES]
            assert not list(agent.proxy.table("services"))
            assert not list(agent.proxy.table("flows"))


def test_an_agent_that_is_restarted_takes_over_and_no_connection_notices() -> None:
    domain, plan = lay()
    with running(domain) as chains, chains.open(plan) as chain:
        load = chain.load(0, 200_000_000, parallel=4, stall_s=2.0)
        for _ in range(5):
            for host in chains.agents:
                again = restarted(chains, host)
                assert "took over" in chains.inside(host, again.apply)
                chains.inside(host, lambda again=again: again.add_chain(plan))  # type: ignore[misc]
                chains.agents[host] = again
                load.reports()
        load.end_input()
        assert load.finish(60)
        assert chains.drops() == {}


def test_a_proxy_of_another_version_inherits_chains_and_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    domain, plan = lay()
    with running(domain) as chains, chains.open(plan) as chain:
        load = chain.load(0, 200_000_000, parallel=4, stall_s=4.0)
        while not load.reports():
            pass
        # As after an update of msl: what is attached is of another version.
        monkeypatch.setattr(proxy, "digest", lambda _folder: "00000000")
        for host in chains.agents:
            again = restarted(chains, host)
            assert "loaded" in chains.inside(host, again.apply)
            chains.agents[host] = again
            load.reports()
        for host, agent in chains.agents.items():
            chains.inside(host, lambda agent=agent: agent.add_chain(plan))  # type: ignore[misc]
        load.end_input()
        assert load.finish(60)
        # A connection that opens between copying and replacing is unknown to the new proxy: TCP repeats what is lost.
        assert {reason for drops in chains.drops().values() for reason in drops} <= {"no_flow", "no_path"}


def test_an_update_that_fails_leaves_the_running_proxy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: object, _defines: object) -> None:
        raise NetworkError("the compiler is gone")

    domain, plan = lay()
    with running(domain) as chains, chains.open(plan) as chain:
        monkeypatch.setattr(proxy, "digest", lambda _folder: "00000000")
        monkeypatch.setattr(proxy.compiler, "compile_source", fail)
        with pytest.raises(NetworkError, match="the compiler is gone"):
            chains.inside("n1", restarted(chains, "n1").apply)
        chain.load(2, 10_000).finish(20)


def test_a_chain_of_another_job_is_refused_and_the_first_goes_on() -> None:
    domain, plan = lay()
    _, other = lay(("n2", "n1"))
    with running(domain) as chains, chains.open(plan) as chain:
        with pytest.raises(NetworkError, match="chain 1 is that of another job"):
            chains.inside("n1", lambda: chains.agents["n1"].add_chain(other))
        chain.load(2, 10_000).finish(20)


def test_a_service_address_of_another_chain_is_refused() -> None:
    domain, plan = lay()
    _, second = lay(number=2)
    with running(domain) as chains, chains.open(plan) as chain:
        rival = dataclasses.replace(second, service=plan.service)
        for host in ("n0", "n3"):
            with pytest.raises(NetworkError, match=r"is that of another job \(chain 1\)"):
                chains.inside(host, lambda host=host: chains.agents[host].add_chain(rival))  # type: ignore[misc]
        chain.load(2, 10_000).finish(20)


def test_what_a_lost_agent_had_made_is_removed_if_nobody_asks_for_it() -> None:
    domain, plan = lay()
    _, second = lay(number=2)
    with running(domain) as chains:
        before = {host: state_of(chains.netns(host)) for host in chains.agents}
        for host, agent in chains.agents.items():
            for each in (plan, second):
                chains.inside(host, lambda agent=agent, each=each: agent.add_chain(each))  # type: ignore[misc]
            chains.agents[host] = again = restarted(chains, host)
            chains.inside(host, again.apply)
            chains.inside(host, lambda again=again: again.add_chain(plan))  # type: ignore[misc]
            assert chains.inside(host, again.remove_strangers) == 1
            assert chains.inside(host, again.remove_strangers) == 0
        with chains.open(plan) as chain:
            chain.load(2, 10_000).finish(20)
        assert {host: state_of(chains.netns(host)) for host in chains.agents} == before


@pytest.mark.parametrize(
    ("segments", "wording"),
    [
        (lambda plan: plan.sids[::-1], "must pass the SIDs"),
        (lambda plan: plan.sids[1:], "must pass the SIDs"),
        (lambda plan: (*plan.sids, plan.sids[0]), "must pass the SIDs"),
        (lambda plan: (plan.sids[0],) * 10 + plan.sids, "must pass the SIDs"),
    ],
)
def test_a_path_that_does_not_pass_the_nsfs_is_refused(segments: Any, wording: str) -> None:
    domain, plan = lay()
    with running(domain) as chains, chains.open(plan) as chain:
        with pytest.raises(NetworkError, match=wording):
            chain.steer(segments(plan))
        chain.load(1, 1000).finish(20)


def test_an_mtu_that_leaves_no_room_is_refused_with_the_way_out() -> None:
    domain, _ = lay()
    with running(domain) as chains:
        agent = HostAgent(domain, "n1", chains.bed.hosts[1].interfaces, mtu=1500)
        with pytest.raises(NetworkError, match=r"an MTU of 1500 leaves 1260 bytes .* raise the MTU, or lower"):
            chains.inside("n1", agent.apply)
        agent = HostAgent(domain, "n1", ("fab1", "eth9"))
        with pytest.raises(NetworkError, match="no interface 'eth9' on this host; there are fab1, fab2"):
            chains.inside("n1", agent.apply)
        chains.inside("n1", chains.agents["n1"].apply)  # what was there is not harmed
        assert "tcp_tw_reuse" in " ".join(sysctl.WANTED)
