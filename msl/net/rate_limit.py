"""The rate limit of a link: a token bucket filter (tc-tbf) on an interface's egress.

pyroute2's own tbf holds rates in 32 bits (34 Gbit/s) and rounds the burst to microseconds; this one has the
attributes for 64 bits and for bytes.
"""

from __future__ import annotations

import struct
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, nla
from pyroute2.netlink.rtnl import RTM_NEWQDISC, TC_H_ROOT
from pyroute2.netlink.rtnl.tcmsg import tcmsg

_LATENCY_S = 0.05
"""What a full queue takes to drain."""
_GSO_BURST = 128 * 1024
"""Bytes that pass at once at any rate. tbf cuts a GSO packet that is longer than its burst into its segments, and
with them goes most of the throughput. It counts the headers of each segment: 64 KiB at an MTU of 1500, with an outer
header and an SRH of 16 segments on each of about 60 segments, come to some 95 KB."""
_TIMER_S = 250e-6
"""Time whose bytes pass at once: if less did, a timer that fires late would cost throughput at high rates."""
_MAX_U32 = 2**32 - 1


def limit_rate(netlink: Any, interface: int, rate_mbit: int) -> None:
    """Limit what leaves an interface.

    Args:
        netlink: an `IPRoute` of the interface's namespace.
        interface: its index; it must not have a qdisc of its own yet.
        rate_mbit: in Mbit/s.
    """
    rate = rate_mbit * 125_000
    burst = max(_GSO_BURST, int(rate * _TIMER_S))
    limit = min(burst + int(rate * _LATENCY_S), _MAX_U32)
    message = _TbfMessage()
    message["index"] = interface
    message["parent"] = TC_H_ROOT
    message["handle"] = 1 << 16
    # struct tc_tbf_qopt: two tc_ratespec (of which only the rate is set; linklayer 1 is Ethernet), then limit, buffer
    # and mtu. The buffer is a time, and unused for the sake of the burst in bytes.
    parms = struct.pack("=BBHhHI12xIII", 0, 1, 0, 0, 0, min(rate, _MAX_U32), limit, 0, 0)
    options: list[tuple[str, Any]] = [("TCA_TBF_PARMS", parms), ("TCA_TBF_BURST", burst)]
    if rate > _MAX_U32:
        options.append(("TCA_TBF_RATE64", rate))
    message["attrs"] = [("TCA_KIND", "tbf"), ("TCA_OPTIONS", {"attrs": options})]
    message["header"]["type"] = RTM_NEWQDISC
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    netlink.nlm_request_batch([message])  # of one: pyroute2 0.9.7's nlm_request fails outside asyncio


class _TbfMessage(tcmsg):  # type: ignore[misc]  # pyroute2 has no types
    # pyroute2 looks a class's attributes up once, and a class that inherits would take over what tcmsg has found.
    _nlmsg_base__compiled_nla = False

    class options(nla):  # type: ignore[misc]  # noqa: N801  # the name by which pyroute2 finds it
        nla_map = (
            ("TCA_TBF_UNSPEC", "none"),
            ("TCA_TBF_PARMS", "cdata"),
            ("TCA_TBF_RTAB", "none"),
            ("TCA_TBF_PTAB", "none"),
            ("TCA_TBF_RATE64", "uint64"),
            ("TCA_TBF_PRATE64", "uint64"),
            ("TCA_TBF_BURST", "uint32"),
        )

    @staticmethod
    def get_options(*_: Any, **__: Any) -> type[nla]:
        return _TbfMessage.options
