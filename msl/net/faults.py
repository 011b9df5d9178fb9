"""Faults of a testbed's router, for tests and benchmarks: made in its network namespace, and mended again."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from msl.net import netns
from msl.net.rate_limit import limit_rate
from msl.net.testbed import Testbed

Fault = Literal["link_down", "black_hole", "one_way", "large_lost"]
FAULTS: tuple[Fault, ...] = ("link_down", "black_hole", "one_way", "large_lost")
"""A host's link goes down; the router drops all; it drops what goes to one host; it drops large packets."""

_SMALL_MTU = 1500


@contextlib.contextmanager
def fault(testbed: Testbed, router: str, kind: Fault, host: int) -> Iterator[None]:
    """A router that fails while the body runs.

    Args:
        testbed: of the router.
        router: its name.
        kind: how it fails.
        host: index of the host whose link is concerned, if it is one.
    """
    there = dict(testbed.routers)[router]
    links = [f"h{index}" for index in range(len(testbed.hosts))]
    every, one = range(len(testbed.hosts)), [f"h{host}"]
    begin, end = {
        "link_down": (lambda: _set_links(one, "down"), lambda: _bring_up(testbed, host)),
        "black_hole": (lambda: _swallow(testbed, every), lambda: _swallow_no_more(testbed, every)),
        "one_way": (lambda: _swallow(testbed, [host]), lambda: _swallow_no_more(testbed, [host])),
        "large_lost": (lambda: _set_mtu(links, _SMALL_MTU), _mtu_restorer(there, links)),
    }[kind]
    netns.inside(there, begin)
    try:
        yield
    finally:
        netns.inside(there, end)


def set_rates(testbed: Testbed, rate_mbit: int | None) -> None:
    """Give all links of a testbed another rate, each way."""
    for host in testbed.hosts:
        netns.inside(host.netns, partial(_limit, host.interfaces, rate_mbit))
    for _, there in testbed.routers:
        names = [f"h{index}" for index in range(len(testbed.hosts))]
        netns.inside(there, partial(_limit, names, rate_mbit))


def _limit(names: Sequence[str], rate_mbit: int | None) -> None:
    with IPRoute() as netlink:
        for name in names:
            index = netlink.link_lookup(ifname=name)[0]
            with contextlib.suppress(NetlinkError):  # it had no limit
                netlink.tc("del", index=index, root=True)
            if rate_mbit is not None:
                limit_rate(netlink, index, rate_mbit)


def _set_links(names: list[str], state: str) -> None:
    with IPRoute() as netlink:
        for name in names:
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], state=state)


def _bring_up(testbed: Testbed, host: int) -> None:
    """The link, and what the kernel has taken away with it: its address, and the route to the host."""
    name = f"h{host}"
    _set_links([name], "up")
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname=name)[0]
        with _there_already():
            netlink.addr("add", index=index, address="fe80::1", prefixlen=64, flags=0x02)
        locator = testbed.locators[host]
        with _there_already():
            netlink.route("add", family=socket.AF_INET6, dst=locator, gateway="fe80::2", oif=index)


@contextlib.contextmanager
def _there_already() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def _swallow(testbed: Testbed, hosts: Sequence[int]) -> None:
    """Have everything that goes to these hosts vanish without a word."""
    with IPRoute() as netlink:
        for host in hosts:
            _replace(netlink, testbed.locators[host], type="blackhole")


def _swallow_no_more(testbed: Testbed, hosts: Sequence[int]) -> None:
    with IPRoute() as netlink:
        for host in hosts:
            index = netlink.link_lookup(ifname=f"h{host}")[0]
            _replace(netlink, testbed.locators[host], gateway="fe80::2", oif=index)


def _replace(netlink: IPRoute, destination: str, **way: Any) -> None:
    netlink.route("del", family=socket.AF_INET6, dst=destination)
    netlink.route("add", family=socket.AF_INET6, dst=destination, **way)


def _set_mtu(names: list[str], mtu: int) -> None:
    with IPRoute() as netlink:
        for name in names:
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], mtu=mtu)


def _mtu_restorer(there: str, names: list[str]) -> Callable[[], None]:
    found: list[int] = []

    def read() -> None:
        with IPRoute() as netlink:
            found.append(int(netlink.link("get", ifname=names[0])[0].get_attr("IFLA_MTU")))

    netns.inside(there, read)
    return lambda: _set_mtu(names, found[0])
