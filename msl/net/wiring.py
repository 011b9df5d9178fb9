"""What the testbed sets inside its namespaces: links, addresses, routes and kernel settings.

Each function works on the network namespace that its thread is in (`msl.net.netns.inside`). Both ends of a link are
made in one go and at once where they belong, so that no interface ever appears in the machine's own namespace, and
its names need to be unique in their namespace only.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Address
from pathlib import Path
from socket import AF_INET6
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from msl.config import TestbedConfig
from msl.net.netns import netns_path
from msl.net.rate_limit import limit_rate
from msl.plan.addressing import node_address
from msl.plan.steering import DomainPlan, SrHost, SrRouter

MANAGEMENT = "mgmt"
"""A host's interface to the management network."""
BRIDGE = "mgmt0"

_GROUP = 0x6D73
"""Interface group of the testbed's links, by which the kernel deletes them all at once."""
_LOOPBACK = 1
_NO_DAD = 0x02
"""IFA_F_NODAD: usable at once. (Nobody else can have these addresses.)"""
_ROUTER_SIDE = IPv6Address("fe80::1")
_HOST_SIDE = IPv6Address("fe80::2")


def fabric_interface(plane: int) -> str:
    """A host's interface in a plane; planes count from 1."""
    return f"fab{plane}"


def prepare_host() -> None:
    """Settings of a host. It comes before its links: they take over the defaults."""
    _prepare(forwards=False)


def prepare_router() -> None:
    """Settings of a router. It comes before its links: they take over the defaults."""
    _prepare(forwards=True)
    # Asked for on the interface that a packet with an SRH arrives on, and on `all`.
    for scope in ("all", "default", "lo"):
        _set(f"ipv6/conf/{scope}/seg6_enabled", 1)


def prepare_management() -> None:
    """Settings of the management network's namespace: IPv4 only, and nothing is forwarded."""
    _prepare(forwards=False)
    for scope in ("all", "default"):
        _set(f"ipv6/conf/{scope}/disable_ipv6", 1)


def set_up_router(router: SrRouter, plane: int, domain: DomainPlan, netns: Sequence[str], link: TestbedConfig) -> None:
    """Make a router's links to all hosts, its routes and its SID.

    Args:
        router: one of the domain's, with a locator.
        plane: its plane; planes count from 1.
        domain: the SR domain.
        netns: the hosts' namespaces, in the order of the domain's hosts.
        link: the links' MTU and rate.
    """
    assert router.locator is not None  # the testbed's routers have one
    with IPRoute() as netlink:
        for index, (host, host_netns) in enumerate(zip(domain.hosts, netns, strict=True)):
            interface = _make_link(netlink, f"h{index}", host_netns, fabric_interface(plane), link.mtu)
            _open_link(netlink, interface, _ROUTER_SIDE, link)
            _route(netlink, host.locator, gateway=_HOST_SIDE, oif=interface)
        _add_node_address(netlink, node_address(router.locator))
        # Planes are disjoint: what is for another plane's router, or for nobody, comes back as unreachable.
        _route(netlink, domain.block, type="unreachable")
        # Any real interface will do (on `lo` packets are dropped): the way on is looked up by the next segment.
        first = _index_of(netlink, "h0")
        _route(netlink, router.sid, oif=first, encap={"type": "seg6local", "action": "End"})


def set_up_host(host: SrHost, domain: DomainPlan, link: TestbedConfig) -> None:
    """Set a host's ends of its links, its address and its routes; the routers' turn has been before.

    All of the domain is reached through plane 1, the host's own locator included: a packet for a SID of the host
    itself turns at the router, and so comes in where the SFC proxy sits. Only other planes' routers are reached
    through their own plane; a segment list chooses a plane by naming its router.
    """
    with IPRoute() as netlink:
        _add_node_address(netlink, host.address)
        for plane, router in enumerate(domain.routers, start=1):
            interface = _index_of(netlink, fabric_interface(plane))
            _open_link(netlink, interface, _HOST_SIDE, link)
            through = {"gateway": str(_ROUTER_SIDE), "oif": interface, "prefsrc": str(host.address)}
            if plane == 1:
                _route(netlink, domain.block, **through)
            _route(netlink, router.locator, **through)


def set_up_management(own: IPv4Interface, hosts: Sequence[tuple[str, IPv4Interface]]) -> None:
    """Make the bridge of the management network with a port to each host, given its namespace and address."""
    with IPRoute() as netlink:
        netlink.link("add", ifname=BRIDGE, kind="bridge", group=_GROUP, state="up")
        bridge = _index_of(netlink, BRIDGE)
        _add_management_address(netlink, bridge, own)
        for index, (netns, _) in enumerate(hosts):
            port = _make_link(netlink, f"h{index}", netns, MANAGEMENT)
            netlink.link("set", index=port, master=bridge, state="up")


def join_management(address: IPv4Interface) -> None:
    """Set a host's end of the management network."""
    _set(f"ipv6/conf/{MANAGEMENT}/disable_ipv6", 1)
    with IPRoute() as netlink:
        interface = _index_of(netlink, MANAGEMENT)
        netlink.link("set", index=interface, state="up")
        _add_management_address(netlink, interface, address)


def delete_links() -> None:
    """Delete the testbed's links of this namespace; their other ends in other namespaces vanish with them."""
    with IPRoute() as netlink:
        try:
            netlink.link("del", index=0, group=_GROUP)
        except NetlinkError as error:
            if error.code != errno.ENODEV:  # there is none
                raise


def _prepare(forwards: bool) -> None:
    # A new namespace takes IPv4's settings over from the machine.
    _set("ipv4/ip_forward", 0)
    _set("ipv6/conf/all/forwarding", int(forwards))
    for scope in ("all", "default"):
        _set(f"ipv6/conf/{scope}/accept_ra", 0)
        _set(f"ipv6/conf/{scope}/accept_dad", 0)
        _set(f"ipv6/conf/{scope}/dad_transmits", 0)
        # A router tells the sender of a packet that turns at it (see `set_up_host`) that there is a shorter way, at
        # most once a second. IPv6 has no setting to make it keep quiet; so nobody listens.
        _set(f"ipv6/conf/{scope}/accept_redirects", 0)
    # The links' link-local addresses are ours, the same on each: a route reads `via fe80::1 dev fab1`.
    _set("ipv6/conf/default/addr_gen_mode", 1)


def _set(setting: str, value: int) -> None:
    # /proc/sys/net shows the namespace of the thread that opens the file.
    Path("/proc/sys/net", setting).write_text(str(value))


def _make_link(netlink: Any, name: str, peer_netns: str, peer: str, mtu: int | None = None) -> int:
    common: dict[str, Any] = {"group": _GROUP} if mtu is None else {"group": _GROUP, "mtu": mtu}
    other_end = {"ifname": peer, "net_ns_fd": str(netns_path(peer_netns)), **common}
    netlink.link("add", ifname=name, kind="veth", peer=other_end, **common)
    return _index_of(netlink, name)


def _open_link(netlink: Any, interface: int, address: IPv6Address, link: TestbedConfig) -> None:
    if link.rate_mbit is not None:
        limit_rate(netlink, interface, link.rate_mbit)
    netlink.link("set", index=interface, state="up")
    netlink.addr("add", index=interface, address=str(address), prefixlen=64, flags=_NO_DAD)


def _add_node_address(netlink: Any, address: IPv6Address) -> None:
    netlink.addr("add", index=_LOOPBACK, address=str(address), prefixlen=128, flags=_NO_DAD)


def _add_management_address(netlink: Any, interface: int, address: IPv4Interface) -> None:
    netlink.addr("add", index=interface, address=str(address.ip), prefixlen=address.network.prefixlen)


def _route(netlink: Any, destination: object, **way: Any) -> None:
    gateway = {"gateway": str(way.pop("gateway"))} if "gateway" in way else {}
    netlink.route("add", family=AF_INET6, dst=str(destination), **gateway, **way)


def _index_of(netlink: Any, interface: str) -> int:
    index: int = netlink.link("get", ifname=interface)[0]["index"]
    return index
