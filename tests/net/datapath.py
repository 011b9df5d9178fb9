"""A host of an SR domain in a namespace of its own, and its SFC proxy as a function: packet in, verdict and packet out.

The host's agent has set everything up as in earnest; a wire leads to its fabric interface. Most tests put packets
through a program by BPF_PROG_TEST_RUN, which delivers and sends nothing. One call of the kernel does not work there,
as it belongs to a hook: bpf_sk_assign, which hands a packet to a listener. What depends on it goes over the wire.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv6Address
from typing import Any, NamedTuple, TypeVar

from pyroute2 import IPRoute

from msl.config import Config
from msl.net import netns
from msl.net.netns import inside
from msl.net.sfc import layout
from msl.net.sfc.agent import DEVICE, HostAgent
from msl.net.sfc.maps import _call, _checked, _RunOptions
from msl.plan.layout import Place
from msl.plan.steering import ChainPlan, Stop, lay_chain
from tests.net.nodes import lay_small_domain
from tests.net.packets import ETH_LEN, MACS, ROUTING, Ends

T = TypeVar("T")

OK, SHOT, REDIRECT = 0, 2, 7
HERE = "n1"
FABRIC_MTU = 2000
DOMAIN = lay_small_domain(hosts=4)
HEAD_END = DOMAIN.host("n0").decap
WAYPOINTS = tuple(router.sid for router in DOMAIN.routers)
CLIENT = IPv6Address("fd00:6d73:6c:1::1")
CLIENT_PORT, PORT = 40_000, 5201

_GATEWAY = "fe80::1"
_TCP_REPAIR = 19
_TRANSPARENT = 75
_EVERY_PROTOCOL = 3
_CONTEXT_BYTES = 192  # of `struct __sk_buff`
_MARK, _INTERFACE, _GSO_SIZE = 8, 40, 176  # offsets in it


def _lay(number: int, *hosts: str) -> ChainPlan:
    last = len(hosts) - 1
    names = ["source", *(f"nsf{hop}" for hop in range(1, last)), "sink"]
    roles = ["source", *("nsf",) * (last - 1), "sink"]
    parts = zip(names, roles, hosts, strict=True)
    places = [Place(hop, name, role, host, hop) for hop, (name, role, host) in enumerate(parts)]  # type: ignore[arg-type]
    config = Config.model_validate({"model": {"factory": "a:b"}, "data": {"factory": "a:b"}, "split": {"cut": ["x"]}})
    return lay_chain(config, DOMAIN, places, number)


FIRST = _lay(1, "n0", HERE, "n2", "n3")
MIDDLE = _lay(2, "n0", "n2", HERE, "n3")
LAST = _lay(3, "n0", "n2", "n3", HERE)
TWICE = _lay(4, "n0", HERE, "n2", HERE, "n3")
OWN = _lay(5, HERE, "n2", "n3")
ONLY = _lay(6, "n0", HERE)
CHAINS = FIRST, MIDDLE, LAST, TWICE, OWN, ONLY
"""This host is the first NSF of a chain, the middle one, the sink, two of three NSFs, the source, and the only stop."""


def stop_here(chain: ChainPlan, which: int = 0) -> Stop:
    return [stop for stop in chain.stops if stop.host == HERE][which]


def ends_of(chain: ChainPlan, service: IPv6Address | None = None, port: int = CLIENT_PORT) -> Ends:
    """From the client to the service, whose address on this host may be another one than on the wire."""
    return CLIENT, port, service or chain.service, PORT


class Outcome(NamedTuple):
    """What a program did with a packet."""

    verdict: int
    frame: bytes
    mark: int
    reason: str | None
    """The counter of drops that went up."""

    @property
    def packet(self) -> bytes:
        """Without the Ethernet header."""
        return self.frame[ETH_LEN:]


class Datapath:
    """The host's proxy and the wire."""

    def __init__(self, agent: HostAgent, pool: ThreadPoolExecutor, wire: socket.socket) -> None:
        self.agent = agent
        self.proxy = agent.proxy
        self.wire = wire
        self._pool = pool
        self._interfaces = self.do(_interfaces)

    def do(self, call: Callable[[], T]) -> T:
        """Call something in a thread of the host."""
        return self._pool.submit(call).result(timeout=60)

    def run(self, program: str, frame: bytes, gso_size: int = 0) -> tuple[int, bytes, int]:
        """Run a program, to be called in a thread of the host; verdict, packet and mark."""
        context = ctypes.create_string_buffer(_CONTEXT_BYTES)
        struct.pack_into("=I", context, _INTERFACE, self._interfaces[DEVICE if program == "egress" else "fab1"])
        struct.pack_into("=I", context, _GSO_SIZE, gso_size)
        before = ctypes.create_string_buffer(frame, len(frame))
        after = ctypes.create_string_buffer(len(frame) + 1024)
        options = _RunOptions(
            size=ctypes.sizeof(_RunOptions),
            data_in=ctypes.addressof(before),
            data_out=ctypes.addressof(after),
            data_size_in=len(before),
            data_size_out=len(after),
            ctx_in=ctypes.addressof(context),
            ctx_out=ctypes.addressof(context),
            ctx_size_in=len(context),
            ctx_size_out=len(context),
            repeat=1,
        )
        number = self.proxy.program(program)
        _checked("cannot run a BPF program", _call("bpf_prog_test_run_opts", number, ctypes.byref(options)))
        (mark,) = struct.unpack_from("=I", context, _MARK)
        return ctypes.c_int32(options.retval).value, after.raw[: options.data_size_out], mark

    def put(self, frame: bytes, program: str = "ingress", gso_size: int = 0) -> Outcome:
        """Run a program on a packet; what it did, and why if it dropped the packet."""
        before = self.proxy.drops()
        verdict, left, mark = self.do(lambda: self.run(program, frame, gso_size))
        counted = [reason for reason, count in self.proxy.drops().items() for _ in range(count - before[reason])]
        assert len(counted) == (verdict == SHOT), "one drop, one count"
        return Outcome(verdict, left, mark, counted[0] if counted else None)

    def table(self, name: str) -> dict[bytes, Any]:
        """The entries of a map."""
        return {bytes(key): value for key, value in self.proxy.table(name).items()}

    def flow(self, ends: Ends, name: str = "flows") -> layout.FlowEntry | None:
        """The flow between these ends, as this host's sockets see them."""
        entry: layout.FlowEntry | None = self.proxy.table(name).get(layout.FlowKey.of(ends[:2], ends[2:]))
        return entry

    def path(self, flow: layout.FlowEntry | None) -> layout.PathEntry:
        """The path of a flow."""
        assert flow is not None
        found = self.proxy.table("paths").get(ctypes.c_uint64(flow.path))
        assert isinstance(found, layout.PathEntry)
        return found

    def traffic(self, sid: IPv6Address) -> layout.Traffic:
        """The counters of a SID of this host."""
        entry = self.proxy.table("sids").get(layout.Address.of(sid))
        assert entry is not None
        return self.proxy.traffic(entry.index)

    def clear(self) -> None:
        """Forget what packets have left in the maps."""
        for name in ("flows", "embryos", "paths"):
            for key in self.proxy.table(name):
                self.proxy.table(name).remove(key)
        for name, count in (("drops", len(layout.REASONS)), ("traffic", 16)):
            for index in range(count):
                self.proxy.table(name).put(ctypes.c_uint32(index), self.proxy.table(name).zero())

    @contextmanager
    def established(self, ends: Ends) -> Iterator[None]:
        """A socket of this host at the far end of `ends`, made without a handshake."""

        def connect() -> socket.socket:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            sock.setsockopt(socket.IPPROTO_IPV6, _TRANSPARENT, 1)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)  # says nothing at its end, either
            sock.bind((str(ends[2]), ends[3]))
            sock.connect((str(ends[0]), ends[1]))
            return sock

        with self.do(connect):
            yield

    def received(self, timeout_s: float = 2.0) -> bytes | None:
        """The next frame with a routing header that comes out of the host's fabric interface."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            self.wire.settimeout(left_s)
            with contextlib.suppress(TimeoutError):
                frame = self.wire.recv(65_536)
                if frame[12:14] == b"\x86\xdd" and frame[20] == ROUTING:
                    return frame
        return None


@contextmanager
def running() -> Iterator[Datapath]:
    """A host with a proxy that serves all CHAINS."""
    names = [f"msl-dp{os.getpid()}-{node}" for node in (HERE, "wire")]
    with contextlib.ExitStack() as undo:
        for name in names:
            netns.create(name, "of a test")
            undo.callback(netns.delete, name)
        wire = inside(names[1], lambda: _make_wire(names[0]))
        undo.callback(wire.close)
        pool = undo.enter_context(ThreadPoolExecutor(1))
        # A thread is where the one that starts it is: the pool's, which is started by this call, stays in the host.
        agent = inside(names[0], lambda: pool.submit(_set_up_host).result(timeout=60))
        yield Datapath(agent, pool, wire)


def _make_wire(host: str) -> socket.socket:
    peer = {"ifname": "fab1", "net_ns_fd": str(netns.netns_path(host)), "address": MACS[:6].hex(":"), "mtu": FABRIC_MTU}
    with IPRoute() as netlink:
        netlink.link("add", kind="veth", ifname="wire", mtu=FABRIC_MTU, peer=peer)
        netlink.link("set", index=netlink.link_lookup(ifname="wire")[0], state="up")
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    wire.bind(("wire", _EVERY_PROTOCOL))
    return wire


def _set_up_host() -> HostAgent:
    with IPRoute() as netlink:
        fabric = netlink.link_lookup(ifname="fab1")[0]
        netlink.link("set", index=fabric, state="up")
        netlink.neigh("add", family=socket.AF_INET6, dst=_GATEWAY, lladdr=MACS[6:].hex(":"), ifindex=fabric, state=128)
        netlink.route("add", family=socket.AF_INET6, dst=str(DOMAIN.block), gateway=_GATEWAY, oif=fabric)
    agent = HostAgent(DOMAIN, HERE, ("fab1",))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "not a bytes object", DeprecationWarning)  # bcc wants names as bytes
        agent.apply()
    for chain in CHAINS:
        agent.add_chain(chain)
    return agent


def _interfaces() -> dict[str, int]:
    with IPRoute() as netlink:
        return {link.get_attr("IFLA_IFNAME"): link["index"] for link in netlink.get_links()}
