"""The device that this host's services lead to, and the kernel's settings that are changed and given back with it.

It is a veth whose egress is the proxy. If the proxy is missing, packets end at the veth's other end: nothing leaves the
host without its segment list.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from ipaddress import IPv6Address

from pyroute2 import IPRoute

from msl.net.sfc import sysctl
from msl.net.sfc.proxy import interface_index
from msl.net.sfc.tunnel_source import get_tunnel_source, set_tunnel_source
from msl.plan.addressing import Sid

DEVICE = "msl0"
DEVICE_END = "msl0-end"
_LARGEST_PACKET = 65_536
_TUNNEL_SOURCE = "tunsrc"
_PATIENCE = "~"
"""Stands in the alias before an interface's name and its `retrans_time_ms`."""
_MARK = "msl "
"""How the device's alias begins; behind it stand the settings as they were."""


def make(netlink: IPRoute, mtu: int, overhead: int) -> int:
    """Make the device if it is not there; its index.

    Args:
        netlink: of this host.
        mtu: of packets before their encapsulation.
        overhead: most bytes that encapsulation adds.
    """
    if not netlink.link_lookup(ifname=DEVICE):
        netlink.link("add", ifname=DEVICE, kind="veth", peer={"ifname": DEVICE_END})
    for name in (DEVICE, DEVICE_END):
        with contextlib.suppress(OSError):  # a kernel without the setting makes a link-local address that nobody uses
            sysctl.write(f"net/ipv6/conf/{name}/addr_gen_mode", "1")
    netlink.link("set", index=interface_index(netlink, DEVICE_END), mtu=mtu, arp=False, state="up")
    index = interface_index(netlink, DEVICE)
    # Room for the headers also in what leaves as one packet and is cut up later: its length has 16 bits.
    netlink.link("set", index=index, mtu=mtu, gso_max_size=_LARGEST_PACKET - overhead, arp=False, state="up")
    sysctl.write(f"net/ipv6/conf/{DEVICE}/forwarding", "1")  # without it, bpf_fib_lookup finds no route
    return index


def change_settings(netlink: IPRoute, tunnel_source: Sid, interfaces: Sequence[str]) -> None:
    """Set what the fabric needs. What was there is kept in the device's alias, where it lasts as long as the change.

    Args:
        netlink: of this host.
        tunnel_source: outer source address of what the head-end sends.
        interfaces: to the SR domain.
    """
    index = interface_index(netlink, DEVICE)
    if not _alias(netlink, index).startswith(_MARK):
        before = {name: sysctl.read(name) for name in sysctl.WANTED} | {_TUNNEL_SOURCE: str(get_tunnel_source())}
        # In short: an alias has 255 characters at most.
        before |= {f"{_PATIENCE}{name}": sysctl.read(sysctl.patience_of(name)) for name in interfaces}
        netlink.link("set", index=index, ifalias=_MARK + ";".join(f"{k}={v}" for k, v in before.items()))
    for name, value in sysctl.WANTED.items():
        sysctl.write(name, value)
    for name in interfaces:
        sysctl.write(sysctl.patience_of(name), sysctl.PATIENCE_MS)
    set_tunnel_source(tunnel_source)


def remove(netlink: IPRoute) -> list[str]:
    """Remove the device, and give the settings back; what was done."""
    found = netlink.link_lookup(ifname=DEVICE)
    if not found:
        return []
    done = []
    alias = _alias(netlink, found[0])
    if alias.startswith(_MARK):
        for name, value in (entry.split("=", 1) for entry in alias.removeprefix(_MARK).split(";")):
            if name == _TUNNEL_SOURCE:
                set_tunnel_source(Sid(IPv6Address(value)))
            elif name.startswith(_PATIENCE):
                with contextlib.suppress(FileNotFoundError):  # the interface is gone
                    sysctl.write(sysctl.patience_of(name.removeprefix(_PATIENCE)), value)
            else:
                sysctl.write(name, value)
            done.append(f"{name} = {value}")
    netlink.link("del", index=found[0])
    return [*done, f"device {DEVICE}"]


def _alias(netlink: IPRoute, index: int) -> str:
    alias: str | None = netlink.link("get", index=index)[0].get_attr("IFLA_IFALIAS")
    return alias or ""
