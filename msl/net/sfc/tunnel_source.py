"""The outer source address of what a host's head-end encapsulates: one for the whole network namespace."""

from __future__ import annotations

from ipaddress import IPv6Address

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from msl.errors import NetworkError

_FAMILY = "SEG6"
_SET, _GET = 3, 4  # linux/seg6_genl.h: SEG6_CMD_SET_TUNSRC, SEG6_CMD_GET_TUNSRC


class _Seg6Message(genlmsg):  # type: ignore[misc]
    nla_map = (("SEG6_ATTR_UNSPEC", "none"), ("SEG6_ATTR_DST", "ip6addr"))


def get_tunnel_source() -> IPv6Address:
    """The present address; `::` lets the kernel choose one."""
    (answer,) = _ask(_GET, [])
    return IPv6Address(answer.get_attr("SEG6_ATTR_DST"))


def set_tunnel_source(address: IPv6Address) -> None:
    """Set it, as `ip sr tunsrc set` does."""
    _ask(_SET, [("SEG6_ATTR_DST", str(address))])


def _ask(command: int, attributes: list[tuple[str, str]]) -> tuple[_Seg6Message, ...]:
    message = _Seg6Message()
    message["cmd"], message["version"] = command, 1
    message["attrs"] = attributes
    flags = NLM_F_REQUEST | (NLM_F_ACK if command == _SET else 0)
    try:
        with GenericNetlinkSocket() as sock:
            sock.bind(_FAMILY, _Seg6Message)
            return tuple(sock.nlm_request(message, msg_type=sock.prid, msg_flags=flags))
    except NetlinkError as error:
        raise NetworkError(
            f"the kernel's SRv6 (CONFIG_IPV6_SEG6_LWTUNNEL) does not answer: {error.args[-1]}"
        ) from error
