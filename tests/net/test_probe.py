"""What probes between hosts find, on a testbed that is broken in one place."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from msl.errors import NetworkError
from msl.net import host_facts
from msl.net.compiler import bcc_folder, kernel_headers
from msl.net.netns import inside
from msl.net.probe import Reach, Responder, check_reach, reach
from msl.net.sfc.agent import HostAgent
from msl.net.sfc.proxy import detach_all
from msl.net.sid_probe import Knock, knock, unproven
from msl.net.testbed import Testbed
from tests.net.nodes import lay_small_domain, running

pytestmark = pytest.mark.root

DOMAIN = lay_small_domain()
HOSTS = [host.name for host in DOMAIN.hosts]
LOOPBACK = IPv4Address("127.0.0.1")


@pytest.fixture
def bed() -> Iterator[Testbed]:
    with running(DOMAIN) as bed:
        yield bed


def netns_of(bed: Testbed, node: str) -> str:
    return {**{host.name: host.netns for host in bed.hosts}, **dict(bed.routers)}[node]


def ip(bed: Testbed, node: str, *arguments: object) -> None:
    subprocess.run(["ip", "-n", netns_of(bed, node), *map(str, arguments)], check=True, timeout=10)


def try_reach(bed: Testbed, here: str, there: str, size: int | None = 9000) -> Reach:
    own, target = DOMAIN.host(here).address, DOMAIN.host(there).address
    with closing(inside(netns_of(bed, there), lambda: Responder(target))) as responder:
        return inside(netns_of(bed, here), lambda: reach(own, target, responder.port, size))


def test_full_sized_packets_pass_between_all_hosts(bed: Testbed) -> None:
    for here in HOSTS:
        for there in HOSTS:
            found = try_reach(bed, here, there)
            assert found.ok, (here, there, found)
            assert found.round_trip_ms > 0


@pytest.mark.parametrize("mtu", [1400, 5001])
def test_a_link_with_a_smaller_mtu_is_found_with_the_largest_size_that_passes(bed: Testbed, mtu: int) -> None:
    ip(bed, "r1", "link", "set", "h1", "mtu", mtu)
    found = try_reach(bed, "n0", "n1")
    assert (found.wanted, found.largest, found.ok) == (9000, mtu, False)
    assert try_reach(bed, "n0", "n2").ok
    check = check_reach("n0", "n1", DOMAIN.host("n1").address, found)
    assert f"at most {mtu} bytes" in check.found
    assert "link set LINK mtu 9000" in check.remedy
    assert f"{{name: n1, mtu: {mtu}}}" in check.remedy


def test_a_link_that_swallows_large_packets_silently_is_told_as_such(bed: Testbed) -> None:
    # veth drops at its receiving end what is larger than that end's MTU; it grants four bytes for a VLAN tag.
    ip(bed, "n1", "link", "set", "fab1", "mtu", 1400)
    for size in (9000, None):
        found = try_reach(bed, "n0", "n1", size)
        assert found.wanted == 9000
        assert 1400 <= found.largest <= 1404
        assert found.reason == ""
    assert "nobody says so" in check_reach("n0", "n1", LOOPBACK, found).found


def test_a_smaller_mtu_that_the_router_tells_is_fine_where_no_size_is_asked_for(bed: Testbed) -> None:
    ip(bed, "r1", "link", "set", "h1", "mtu", 1400)
    found = try_reach(bed, "n0", "n1", None)
    assert (found.wanted, found.ok) == (1400, True)


def test_more_than_the_own_interface_takes_is_not_sent_in_pieces(bed: Testbed) -> None:
    ip(bed, "n0", "link", "set", "fab1", "mtu", 8000)
    assert try_reach(bed, "n0", "n1").largest == 8000


@pytest.mark.parametrize(("node", "link"), [("n1", "fab1"), ("r1", "h1"), ("n0", "fab1")])
def test_behind_a_link_that_is_down_nobody_is_reached_and_the_probe_ends(bed: Testbed, node: str, link: str) -> None:
    ip(bed, node, "link", "set", link, "down")
    begin = time.monotonic()
    found = try_reach(bed, "n0", "n1")
    assert time.monotonic() - begin < 6
    assert (found.ok, found.largest) == (False, 0)
    check = check_reach("n0", "n1", DOMAIN.host("n1").address, found)
    assert check.found.startswith("unreachable (")
    assert "ip route get" in check.remedy


def test_a_router_that_knows_no_way_is_quoted(bed: Testbed) -> None:
    ip(bed, "r1", "route", "del", DOMAIN.host("n1").locator)
    assert "unreachable" in try_reach(bed, "n0", "n1").reason.lower()


def test_an_address_that_is_not_the_hosts_own_is_refused(bed: Testbed) -> None:
    with pytest.raises(NetworkError, match=r"cannot listen at fd00:.*: Cannot assign requested address"):
        inside(netns_of(bed, "n0"), lambda: Responder(DOMAIN.host("n1").address))


def test_ipv4_is_probed_as_well() -> None:
    with closing(Responder(LOOPBACK)) as responder:
        found = reach(LOOPBACK, LOOPBACK, responder.port)
    assert (found.wanted, found.ok) == (65_535, True)  # loopback's MTU is one more than IPv4 allows
    assert not reach(LOOPBACK, LOOPBACK, responder.port).ok


class Proxies:
    """The hosts' proxies on a testbed, and knocks at them from there."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed
        self.agents = {host.name: HostAgent(DOMAIN, host.name, host.interfaces) for host in bed.hosts}
        for name, agent in self.agents.items():
            inside(netns_of(bed, name), agent.apply)

    def unproven(self, knocks: Sequence[Knock]) -> dict[Knock, str]:
        return unproven(knocks, self._send, self._drops)

    def _send(self, knocks: Sequence[Knock]) -> dict[Knock, str]:
        failed = {}
        for each in knocks:
            own, via = DOMAIN.host(each.prober).address, each.via.sid if each.via is not None else None
            try:
                inside(netns_of(self.bed, each.prober), lambda own=own, each=each, via=via: knock(own, each.sid, via))
            except NetworkError as error:
                failed[each] = str(error)
        return failed

    def _drops(self, hosts: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        return {host: self.agents[host].proxy.drops() for host in hosts}


@pytest.fixture(scope="module")
def proxies() -> Iterator[Proxies]:
    """A testbed with a proxy on each host; who breaks it mends it."""
    try:
        bcc_folder()
        kernel_headers()
    except NetworkError as error:
        pytest.skip(f"the proxy cannot be compiled: {error}")
    with running(DOMAIN) as bed:
        yield Proxies(bed)


@contextmanager
def route(bed: Testbed, node: str, *what: object) -> Iterator[None]:
    ip(bed, node, "-6", "route", "add", *what)
    try:
        yield
    finally:
        ip(bed, node, "-6", "route", "del", *what)


def all_knocks() -> list[Knock]:
    return [Knock(here, there, DOMAIN.host(there).decap) for here in HOSTS for there in HOSTS if here != there]


def all_waypoints() -> list[Knock]:
    return [Knock(host, host, DOMAIN.host(host).decap, router) for host in HOSTS for router in DOMAIN.routers]


def test_all_sids_lead_to_their_proxies_and_all_waypoints_pass_on(proxies: Proxies) -> None:
    assert proxies.unproven(all_knocks()) == {}
    assert proxies.unproven(all_waypoints()) == {}


def test_a_sid_of_a_host_without_its_proxy_is_unproven_from_everywhere(proxies: Proxies) -> None:
    def detach() -> None:
        with IPRoute() as netlink:
            assert detach_all(netlink)

    inside(netns_of(proxies.bed, "n1"), detach)
    try:
        failed = proxies.unproven(all_knocks())
    finally:
        inside(netns_of(proxies.bed, "n1"), proxies.agents["n1"].apply)
    assert {(each.prober, each.target) for each in failed} == {("n0", "n1"), ("n2", "n1")}
    assert set(failed.values()) == {"its proxy does not see what is sent"}


def test_a_sid_without_a_route_is_told_with_the_kernels_reason(proxies: Proxies) -> None:
    with route(proxies.bed, "n0", "unreachable", DOMAIN.host("n1").locator):
        ((failed, reason),) = proxies.unproven(all_knocks()).items()
    assert (failed.prober, failed.target) == ("n0", "n1")
    assert reason.startswith("cannot send: ")


def test_a_sid_whose_route_leads_to_another_host_is_unproven(proxies: Proxies) -> None:
    with route(proxies.bed, "r1", f"{DOMAIN.host('n1').decap}/128", "via", "fe80::2", "dev", "h2"):
        failed = proxies.unproven(all_knocks())
    assert {each.target for each in failed} == {"n1"}


def test_a_router_without_its_end_is_no_waypoint(proxies: Proxies) -> None:
    end = [DOMAIN.routers[1].sid, "encap", "seg6local", "action", "End", "dev", "h0"]
    ip(proxies.bed, "r2", "-6", "route", "del", *end)
    try:
        failed = proxies.unproven(all_waypoints())
    finally:
        ip(proxies.bed, "r2", "-6", "route", "add", *end)
    assert {each.via.name for each in failed if each.via is not None} == {"r2"}
    assert {each.prober for each in failed} == set(HOSTS)


def test_what_is_wrong_with_an_interface_is_told_with_its_command(bed: Testbed) -> None:
    ip(bed, "n0", "link", "set", "fab1", "mtu", 1500)
    ip(bed, "r2", "link", "set", "h0", "down")
    ip(bed, "n1", "link", "set", "fab1", "down")
    switch = Path("/proc/sys/net/ipv6/conf/fab2/disable_ipv6")
    inside(netns_of(bed, "n1"), lambda: switch.write_text("1"))

    def judge(node: str, *interfaces: str) -> dict[str, tuple[str, str]]:
        facts = inside(netns_of(bed, node), lambda: host_facts.look(interfaces, sfc=False))
        checks = host_facts.check_links(facts.links, 9000)
        return {check.need.split()[1]: (check.found, check.remedy) for check in checks if not check.ok}

    assert judge("n0", "fab1", "fab2", "eth7") == {
        "fab1": ("MTU 1500, needed are 9000", "ip link set fab1 mtu 9000"),
        "fab2": ("has no carrier", "set its other end up, or plug its cable in"),
        "eth7": ("there is none", "name the host's own in hosts; 'ip link' lists them"),
    }
    assert judge("n1", "fab1", "fab2") == {
        "fab1": ("is down", "ip link set fab1 up"),
        "fab2": ("IPv6 is disabled", "sysctl -w net.ipv6.conf.fab2.disable_ipv6=0"),
    }
    assert judge("n2", "fab1", "fab2") == {}


def test_a_responder_ends_when_it_is_closed() -> None:
    with closing(Responder(IPv6Address("::1"))) as responder:
        assert responder._thread.is_alive()
    assert not responder._thread.is_alive()
