"""What hosts of the testbed can send each other, and on which way."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from msl.config import TestbedConfig
from msl.net.netns import inside
from msl.net.testbed import Testbed, TestbedHost
from msl.plan.addressing import chain_sid, node_address
from msl.plan.steering import SrHost
from tests.net.nodes import (
    PORT,
    arrives,
    lay_small_domain,
    read_setting,
    received_bytes,
    received_packets,
    running,
    udp_socket,
    wait_until,
)

pytestmark = pytest.mark.root

DOMAIN = lay_small_domain()
# Not in the module socket.
IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO, IPV6_RECVERR = 23, 2, 25
CHATTER = 20
"""More packets than neighbour discovery and group reports send on a link during a test."""


@pytest.fixture
def bed() -> Iterator[Testbed]:
    with running(DOMAIN) as bed:
        yield bed


def ip(netns: str, *arguments: object) -> None:
    subprocess.run(["ip", "-n", netns, *map(str, arguments)], check=True, timeout=10)


def decapsulate(host: SrHost, there: TestbedHost) -> None:
    encap = ("encap", "seg6local", "action", "End.DT6", "table", "local")
    ip(there.netns, "-6", "route", "add", f"{host.decap}/128", *encap, "dev", there.interfaces[0])


def qdisc(netns: str, interface: str) -> dict[str, dict[str, int]]:
    command = ["tc", "-n", netns, "-json", "qdisc", "show", "dev", interface]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=10).stdout)
    return listed[0]


def transfer(sender: TestbedHost, receiver: TestbedHost, address: str, num_bytes: int) -> float:
    """Seconds that a TCP transfer takes."""

    def listen() -> socket.socket:
        return socket.create_server((address, PORT), family=socket.AF_INET6)

    def receive() -> int:
        connection, _ = server.accept()
        with connection:
            return sum(iter(lambda: len(connection.recv(1 << 20)), 0))

    with inside(receiver.netns, listen) as server, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive)
        begin = time.monotonic()
        with inside(sender.netns, lambda: socket.create_connection((address, PORT), timeout=10)) as connection:
            connection.sendall(bytes(num_bytes))
        assert received.result(timeout=20) == num_bytes
        return time.monotonic() - begin


def test_hosts_reach_each_other_through_plane_1_from_the_first_packet_on(bed: Testbed) -> None:
    begin = time.monotonic()
    pairs = list(itertools.permutations(zip(DOMAIN.hosts, bed.hosts, strict=True), 2))
    for (host, here), (other, there) in pairs:
        with udp_socket(here, str(host.address)) as sender, udp_socket(there, str(other.address)) as receiver:
            assert arrives(sender, receiver)
    assert time.monotonic() - begin < 0.9  # a lost first packet costs neighbour discovery a second


def test_ordinary_traffic_leaves_the_other_planes_alone(bed: Testbed) -> None:
    (host, here), (other, last) = list(zip(DOMAIN.hosts, bed.hosts, strict=True))[::2]
    with udp_socket(here, str(host.address)) as sender, udp_socket(last, str(other.address)) as receiver:
        assert all(arrives(sender, receiver) for _ in range(100))
    assert received_packets(last.netns, "fab1") >= 100
    assert received_packets(last.netns, "fab2") < CHATTER


@pytest.mark.parametrize("plane", [1, 2])
def test_a_segment_list_chooses_the_plane_by_its_router(bed: Testbed, plane: int) -> None:
    (source, here), (target, there) = list(zip(DOMAIN.hosts, bed.hosts, strict=True))[:2]
    router = DOMAIN.routers[plane - 1]
    decapsulate(target, there)
    path = ("encap", "seg6", "mode", "encap", "segs", f"{router.sid},{target.decap}")
    ip(here.netns, "-6", "route", "add", f"{target.address}/128", *path, "dev", here.interfaces[0])
    with udp_socket(here, str(source.address)) as sender, udp_socket(there, str(target.address)) as receiver:
        assert all(arrives(sender, receiver) for _ in range(100))
    for number in (1, 2):
        arrived = received_packets(there.netns, f"fab{number}")
        assert arrived >= 100 if number == plane else arrived < CHATTER
        passed = received_packets(bed.routers[number - 1][1], "h0")
        assert passed >= 100 if number == plane else passed < CHATTER


def test_a_packet_for_a_sid_of_the_host_itself_turns_at_the_router(bed: Testbed) -> None:
    host, here = DOMAIN.hosts[0], bed.hosts[0]
    with udp_socket(here, str(host.address)) as sender:
        for _ in range(100):
            sender.sendto(b"hello", (str(chain_sid(host.locator, 1, 1)), PORT))
    wait_until(lambda: received_packets(here.netns, "fab1") >= 100)
    assert received_packets(bed.routers[0][1], "h0") >= 100


def test_planes_are_disjoint(bed: Testbed) -> None:
    host, here = DOMAIN.hosts[0], bed.hosts[0]
    router = DOMAIN.routers[1]
    assert router.locator is not None
    address = str(node_address(router.locator))
    with udp_socket(here, str(host.address)) as sock:
        sock.connect((address, 9))
        sock.send(b"on its own plane")
        with pytest.raises(ConnectionRefusedError):  # it was there: nothing listens at its port
            sock.recv(1)
    ip(here.netns, "-6", "route", "add", f"{address}/128", "via", "fe80::1", "dev", "fab1")
    with udp_socket(here, str(host.address)) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        sock.connect((address, 9))
        sock.send(b"on the wrong plane")
        with pytest.raises(OSError, match="Network is unreachable"):
            sock.recv(1)


def test_packets_as_large_as_the_mtu_arrive_in_one_piece(bed: Testbed) -> None:
    whole = bytes(9000 - 40 - 8)
    with udp_socket(bed.hosts[0], str(DOMAIN.hosts[0].address)) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO)
        with udp_socket(bed.hosts[1], str(DOMAIN.hosts[1].address)) as receiver:
            before = received_packets(bed.hosts[1].netns, "fab1")
            assert all(arrives(sender, receiver, whole) for _ in range(50))
            assert received_packets(bed.hosts[1].netns, "fab1") - before < 50 + CHATTER
            with pytest.raises(OSError, match="Message too long"):
                sender.sendto(whole + b"x", receiver.getsockname())


def test_both_ends_of_every_link_are_limited(bed: Testbed) -> None:
    nodes = [(host.netns, interface) for host in bed.hosts for interface in host.interfaces]
    nodes += [(router, f"h{index}") for _, router in bed.routers for index in range(len(bed.hosts))]
    for netns, interface in nodes:
        assert qdisc(netns, interface)["kind"] == "tbf"
        assert qdisc(netns, interface)["options"]["rate"] == 10_000 * 125_000


@pytest.mark.parametrize("rate_mbit", [1, 100_000, 1_000_000])
def test_rates_beyond_32_bits_are_kept(rate_mbit: int) -> None:
    with running(DOMAIN, TestbedConfig(rate_mbit=rate_mbit)) as bed:
        assert qdisc(bed.hosts[0].netns, "fab1")["options"]["rate"] == rate_mbit * 125_000


def test_links_without_a_rate_have_no_limit() -> None:
    with running(DOMAIN, TestbedConfig(rate_mbit=None)) as bed:
        assert qdisc(bed.hosts[0].netns, "fab1")["kind"] == "noqueue"


def test_the_rate_is_held() -> None:
    num_bytes = 6_000_000
    with running(DOMAIN, TestbedConfig(rate_mbit=100)) as bed:
        seconds = transfer(bed.hosts[0], bed.hosts[1], str(DOMAIN.hosts[1].address), num_bytes)
    wanted_s = num_bytes / 12.5e6
    assert 0.85 * wanted_s < seconds < 2 * wanted_s


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_the_limit_does_not_cut_large_packets(mtu: int) -> None:
    num_bytes = 40_000_000
    with running(DOMAIN, TestbedConfig(rate_mbit=1000, mtu=mtu)) as bed:
        there = bed.hosts[1]
        transfer(bed.hosts[0], there, str(DOMAIN.hosts[1].address), num_bytes)
        mean = received_bytes(there.netns, "fab1") / received_packets(there.netns, "fab1")
    assert mean > 2 * mtu


def test_the_management_network_joins_the_hosts_and_nothing_else(bed: Testbed) -> None:
    first, second = bed.hosts[:2]
    with inside(second.netns, lambda: socket.create_server((second.address, PORT))):
        inside(first.netns, lambda: socket.create_connection((second.address, PORT), timeout=3)).close()
    for node in ("mgmt", "n0", "n1", "n2"):
        assert read_setting(f"msl-{bed.name}-{node}", "ipv4/ip_forward") == "0"
    assert read_setting(f"msl-{bed.name}-mgmt", "ipv6/conf/mgmt0/disable_ipv6") == "1"


def test_routers_forward_and_hosts_do_not(bed: Testbed) -> None:
    for host in bed.hosts:
        for interface in ("all", "mgmt", *host.interfaces):
            assert read_setting(host.netns, f"ipv6/conf/{interface}/forwarding") == "0"
            assert read_setting(host.netns, f"ipv6/conf/{interface}/accept_redirects") == "0"
    for _, router in bed.routers:
        for interface in ("all", "h0", "h2"):
            assert read_setting(router, f"ipv6/conf/{interface}/forwarding") == "1"
            assert read_setting(router, f"ipv6/conf/{interface}/seg6_enabled") == "1"
