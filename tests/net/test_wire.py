"""What is on every link of a chain, and that ordinary programs at its ends notice nothing of it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from msl.plan.addressing import SegmentList
from msl.plan.steering import ChainPlan, DomainPlan
from tests.net.capture import Hop, capturing, send_real_checksums
from tests.net.chain import Chains, lay, running

pytestmark = pytest.mark.root

MTU = 9000


@pytest.fixture(scope="module")
def chains() -> Iterator[Chains]:
    domain, _ = lay()
    with running(domain) as chains:
        yield chains


@pytest.fixture(autouse=True)
def _nothing_is_dropped(chains: Chains) -> Iterator[None]:
    yield
    assert chains.drops() == {}
    assert chains.checksum_errors() == 0


def expected(domain: DomainPlan, chain: ChainPlan) -> set[Hop]:
    """All that should be seen, from the plan alone: each proxy sends on what came, or sends back the way it came."""
    nodes = {router.sid: router.name for router in domain.routers} | {stop.sid: stop.host for stop in chain.stops}
    client, head = domain.host(chain.source).address, domain.host(chain.source).decap
    nodes[head] = chain.source
    forth, back = (client, chain.service), (chain.service, client)
    hops: set[Hop] = set()
    before = chain.source
    for at, sid in enumerate(chain.segments):
        hops |= _leg(domain, before, nodes[sid], (head, sid, chain.segments, len(chain.segments) - 1 - at, forth))
        before = nodes[sid]
    for at, sid in enumerate(chain.segments):
        if sid not in chain.sids:
            continue
        way = (*reversed(chain.segments[:at]), head)
        before = nodes[sid]
        for step, segment in enumerate(way):
            hops |= _leg(domain, before, nodes[segment], (sid, segment, way, len(way) - 1 - step, back))
            before = nodes[segment]
            if segment in chain.sids:
                break
    return hops


Header = tuple[IPv6Address, IPv6Address, SegmentList, int, tuple[IPv6Address, IPv6Address]]


def _leg(domain: DomainPlan, sender: str, receiver: str, header: Header) -> set[Hop]:
    """The links between two nodes: hosts reach each other through plane 1."""
    routers = {router.name for router in domain.routers}
    router = next((node for node in (sender, receiver) if node in routers), "r1")
    hosts = {node for node in (sender, receiver) if node not in routers}
    numbers = {host.name: index for index, host in enumerate(domain.hosts)}
    return {Hop((router, f"h{numbers[host]}"), *header) for host in hosts}


@pytest.mark.parametrize(
    ("nsfs", "via"),
    [
        (["n1", "n2"], None),
        (["n1", "n2"], "r1"),
        (["n1", "n2"], ("r2", "r1", None)),
        (["n1", "n1", "n2"], ("r2", None, None, "r1")),
        (["n2", "n1", "n3"], "r2"),
    ],
    ids=["plane 1", "through r1", "mixed", "two NSFs on a host", "back and forth, NSF beside the sink"],
)
@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
def test_every_link_carries_the_planned_headers_and_right_checksums(
    chains: Chains, nsfs: Sequence[str], via: str | tuple[str | None, ...] | None, tmp_path: Path
) -> None:
    domain, plan = lay(nsfs, via=via)
    send_real_checksums(chains)
    with chains.open(plan) as chain, capturing(chains, tmp_path) as capture:
        chain.load(3, 200_000).finish(30)
    assert set(capture.hops) == expected(domain, plan)
    assert min(capture.hops.values()) >= 10, "all of a connection went this way"
    assert capture.bad_checksums == 0
    assert capture.longest <= MTU + 14


def test_the_sink_sees_the_client_and_the_client_sees_the_service(chains: Chains) -> None:
    domain, plan = lay(("n1", "n1", "n2"), via="r2")
    with chains.open(plan, sink=False):
        client, server = plain_connection(chains, plan)
        with client, server:
            assert server.getpeername()[:2] == client.getsockname()[:2]
            assert client.getpeername()[:2] == server.getsockname()[:2] == (str(plan.service), plan.port)
            assert client.getsockname()[0] == str(domain.host("n0").address)
            client.sendall(b"ping")
            assert server.recv(4) == b"ping"
            server.sendall(b"pong")
            assert client.recv(4) == b"pong"


def plain_connection(chains: Chains, plan: ChainPlan) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection between programs that know nothing of SRv6."""
    target = str(plan.service), plan.port
    listener = chains.inside(plan.stops[-1].host, lambda: socket.create_server(target, family=socket.AF_INET6))
    with listener:
        listener.settimeout(5)
        client = chains.inside(plan.source, lambda: socket.create_connection(target, timeout=5))
        return client, listener.accept()[0]


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
@pytest.mark.parametrize("way", [[], ["-R"], ["--bidir", "-P", "2"]], ids=["forward", "backward", "both"])
def test_iperf3_measures_through_a_chain(chains: Chains, way: list[str]) -> None:
    _, plan = lay(via=("r1", "r2", None))
    # A client of iperf3 ends with bytes that it has not read: that resets its connections.
    with chains.open(plan, sink=False, may_complain=True):
        address, port = str(plan.service), str(plan.port)
        server = chains.inside("n3", _starter(["iperf3", "-s", "-1", "-B", address, "-p", port, "--forceflush"]))
        try:
            assert server.stdout is not None
            while "listening" not in server.stdout.readline():
                assert server.poll() is None
            client = chains.inside("n0", _starter(["iperf3", "-c", address, "-p", port, "-J", "-t", "2", *way]))
            report = json.loads(client.communicate(timeout=30)[0])
            assert "error" not in report, report["error"]
            received = [value for name, value in report["end"].items() if name.startswith("sum_received")]
            assert received
            assert all(end["bytes"] > 10**7 for end in received)
            server.wait(10)
        finally:
            server.kill()
            server.communicate()


def _starter(command: list[str]) -> Callable[[], subprocess.Popen[str]]:
    return lambda: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
