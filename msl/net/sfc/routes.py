"""Routes, rules and addresses of the SFC fabric on one host, through netlink.

All of them carry the protocol number `PROTOCOL`, by which they are found and removed, also by another process after a
crash. Nothing without it is touched.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_NEWROUTE
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from msl.errors import NetworkError
from msl.net.sfc.layout import DELIVER_MARK
from msl.net.sfc.proxy import interface_index
from msl.plan.addressing import SegmentList, Sid, overhead

PROTOCOL = 109
"""Our own among route protocols: those below 128 are free for user space, and this one is nobody's."""
DELIVERY_TABLE = 28_019
"""Here every address is local: for packets that the proxy has decapsulated for a transparent socket."""
SERVICE_TABLE = 28_020
"""Here everything leads to the proxy's egress: for what transparent sockets and the service answer."""
_DELIVERY_RULE = 100
_SERVICE_RULE = 101
_LOCAL = 2  # RTN_LOCAL
_LOOPBACK = 1
_MTU = "RTAX_MTU"
_SEG6 = 5  # LWTUNNEL_ENCAP_SEG6


@dataclass(frozen=True)
class HeadEnd:
    """A head-end's route: what is for the service goes along the segments."""

    service: IPv6Address
    segments: SegmentList
    generation: int
    """Counts the changes of the path; travels in the tag of the SRH."""


def add_delivery(netlink: IPRoute) -> None:
    """Let packets with the proxy's mark be delivered locally, whatever their address."""
    _quietly(netlink, "add", dst="::/0", oif=_LOOPBACK, table=DELIVERY_TABLE, type=_LOCAL, scope=254)
    _add_rule(netlink, fwmark=DELIVER_MARK, fwmask=0xFFFFFFFF, table=DELIVERY_TABLE, priority=_DELIVERY_RULE)


def add_service_table(netlink: IPRoute, device: int) -> None:
    """Let everything in the table of services leave through the device with the proxy's egress."""
    _quietly(netlink, "replace", dst="::/0", oif=device, table=SERVICE_TABLE)


def steer_onward(netlink: IPRoute, service: IPv6Address, device: int) -> None:
    """At an NSF: lead what goes to the service through the proxy's egress."""
    _quietly(netlink, "replace", dst=f"{service}/128", oif=device)


def steer_answers(netlink: IPRoute, service: IPv6Address) -> None:
    """Lead what comes from the service, wherever to, through the proxy's egress."""
    _add_rule(netlink, src=str(service), src_len=128, table=SERVICE_TABLE, priority=_SERVICE_RULE)


def unsteer_answers(netlink: IPRoute, service: IPv6Address) -> None:
    """Undo `steer_answers`."""
    with contextlib.suppress(NetlinkError):
        netlink.rule(
            "del", family=socket.AF_INET6, src=str(service), src_len=128, table=SERVICE_TABLE, priority=_SERVICE_RULE
        )


def remove_route(netlink: IPRoute, service: IPv6Address) -> None:
    """Remove our route to a service, of an NSF or a head-end."""
    with contextlib.suppress(NetlinkError):
        netlink.route("del", family=socket.AF_INET6, dst=f"{service}/128", proto=PROTOCOL)


def set_head_end(netlink: IPRoute, head: HeadEnd, device: int, mtu: int, source: IPv6Address) -> None:
    """Steer what this host sends to a service along a segment list; an earlier list is replaced without a gap.

    Args:
        netlink: of this host.
        head: service and segments.
        device: index of the device with the proxy's egress; gives segments their size.
        mtu: of the packets before their encapsulation, the same whatever the list's length.
        source: address that clients on this host get.

    Raises:
        NetworkError: the kernel refuses.
    """
    # The kernel takes the encapsulation off the route's MTU.
    metrics = {"attrs": [(_MTU, mtu + overhead(len(head.segments)))]}
    message = rtmsg()
    message |= {"family": socket.AF_INET6, "dst_len": 128, "table": 254, "proto": PROTOCOL, "type": 1}
    message["attrs"] = [
        ("RTA_DST", str(head.service)),
        ("RTA_OIF", device),
        ("RTA_PREFSRC", str(source)),
        ("RTA_METRICS", metrics),
        ("RTA_ENCAP_TYPE", _SEG6),
        ("RTA_ENCAP", {"attrs": [("SEG6_IPTUNNEL_SRH", _srh(head))]}),
    ]
    _send_route(netlink, message, head)


def _srh(head: HeadEnd) -> dict[str, Any]:
    segments = [str(sid) for sid in reversed(head.segments)]  # in the order of the wire: the last one first
    # pyroute2 calls the tag by its name in earlier drafts of the SRH.
    return {"mode": "encap", "segs": segments, "flags": 0, "reserved": socket.htons(head.generation & 0xFFFF)}


def _send_route(netlink: IPRoute, message: rtmsg, head: HeadEnd) -> None:
    # IPRoute.route() cannot express the tag, and nlm_request() wants this setting, which IPRoute leaves out.
    netlink.asyncore.status.setdefault("nlm_generator", False)
    try:
        netlink.nlm_request(message, RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
    except NetlinkError as error:
        path = ", ".join(map(str, head.segments))
        raise NetworkError(f"cannot steer {head.service} along [{path}]: {error.args[-1]}") from error


def head_ends(netlink: IPRoute) -> Iterator[HeadEnd]:
    """The head-end routes of this host that are ours."""
    for route in netlink.get_routes(family=socket.AF_INET6, proto=PROTOCOL):
        encap = route.get_attr("RTA_ENCAP")
        srh = encap.get_attr("SEG6_IPTUNNEL_SRH") if encap is not None and hasattr(encap, "get_attr") else None
        if srh is None:
            continue
        segments = tuple(Sid(IPv6Address(text)) for text in reversed(srh["segs"]))
        yield HeadEnd(IPv6Address(route.get_attr("RTA_DST")), segments, socket.ntohs(srh["reserved"]))


def interface_to(netlink: IPRoute, address: IPv6Address) -> int:
    """Index of the interface over which the host's routes lead to an address; 0 if none does."""
    try:
        found = list(netlink.route("get", family=socket.AF_INET6, dst=str(address)))
    except NetlinkError:
        return 0
    return int(found[0].get_attr("RTA_OIF") or 0) if found else 0


def routers_behind(
    netlink: IPRoute, interfaces: Sequence[str], routers: Mapping[str, IPv6Address]
) -> dict[str, tuple[str, ...]]:
    """Routers that the host's routes reach over each of its interfaces.

    Args:
        netlink: of this host.
        interfaces: their names.
        routers: SIDs by name.
    """
    names = {interface_index(netlink, name): name for name in interfaces}
    found: dict[str, tuple[str, ...]] = dict.fromkeys(interfaces, ())
    for router, sid in routers.items():
        name = names.get(interface_to(netlink, sid))
        if name is not None:
            found[name] += (router,)
    return found


def remove_all(netlink: IPRoute) -> int:
    """Remove all our rules and routes; returns how many."""
    removed = 0
    for rule in netlink.get_rules(family=socket.AF_INET6):
        if rule.get_attr("FRA_PROTOCOL") == PROTOCOL:
            netlink.rule("del", **_same_rule(rule))
            removed += 1
    for route in netlink.get_routes(family=socket.AF_INET6, proto=PROTOCOL):
        if route["proto"] != PROTOCOL:
            continue
        spec = {"family": socket.AF_INET6, "table": route.get_attr("RTA_TABLE"), "proto": PROTOCOL}
        spec["dst"] = f"{route.get_attr('RTA_DST') or '::'}/{route['dst_len']}"
        with contextlib.suppress(NetlinkError):
            netlink.route("del", type=route["type"], **spec)
            removed += 1
    return removed


def _quietly(netlink: IPRoute, command: str, **spec: Any) -> None:
    """Change a route; what is there already is left."""
    try:
        netlink.route(command, family=socket.AF_INET6, proto=PROTOCOL, **spec)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise NetworkError(f"cannot set the route to {spec['dst']}: {error.args[-1]}") from error


def _add_rule(netlink: IPRoute, **spec: Any) -> None:
    try:
        netlink.rule("add", family=socket.AF_INET6, protocol=PROTOCOL, **spec)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise NetworkError(f"cannot add the rule {spec}: {error.args[-1]}") from error


def _same_rule(rule: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "family": socket.AF_INET6,
        "table": rule.get_attr("FRA_TABLE"),
        "priority": rule.get_attr("FRA_PRIORITY"),
        "protocol": PROTOCOL,
    }
    if rule.get_attr("FRA_FWMARK") is not None:
        spec |= {"fwmark": rule.get_attr("FRA_FWMARK"), "fwmask": rule.get_attr("FRA_FWMASK")}
    if rule.get_attr("FRA_SRC") is not None:
        spec |= {"src": rule.get_attr("FRA_SRC"), "src_len": rule["src_len"]}
    return spec
