"""The built-in SR domain: hosts as named network namespaces of this machine, joined by planes of SRv6 routers.

    msl-NAME-n0         msl-NAME-r1         msl-NAME-n1      a plane is a router with a link to every host; hosts
    fab1 fe80::2 ---- fe80::1 h0                             have an interface in each: fab1, fab2, ...
                      fe80::1 h1 ---- fe80::2 fab1
    mgmt 10.66.0.10 ------ msl-NAME-mgmt ------ 10.66.0.11 mgmt      Ray's way, apart from the planes

Every namespace carries the testbed's mark from its first moment on, so that `remove` finds what a build left that was
killed, and nothing else: the name alone does not tell `msl-a-b-n0` of testbed `a-b` from one of testbed `a`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Interface

from pyroute2.netlink.exceptions import NetlinkError

from msl.config import TestbedConfig
from msl.errors import ClusterError, ConfigError
from msl.net import netns, wiring
from msl.plan.steering import DomainPlan

log = logging.getLogger(__name__)

_MANAGEMENT = IPv4Interface("10.66.0.1/16")


@dataclass(frozen=True)
class TestbedHost:
    """A host of the testbed."""

    __test__ = False  # its name does not make it a test

    name: str
    netns: str
    """Name of its network namespace."""
    address: str
    """Its IPv4 address on the management network."""
    interfaces: tuple[str, ...]
    """Its fabric interfaces, one a plane."""


@dataclass(frozen=True)
class Testbed:
    """A testbed that is up."""

    __test__ = False

    name: str
    hosts: tuple[TestbedHost, ...]
    routers: tuple[tuple[str, str], ...]
    """Name and network namespace of each plane's router."""
    locators: tuple[str, ...] = ()
    """Of the hosts, in their order."""


def build(name: str, domain: DomainPlan, settings: TestbedConfig) -> Testbed:
    """Make the testbed of that name; on failure or interrupt nothing stays.

    Args:
        name: of the testbed; one machine can have several.
        domain: its hosts and routers, as `lay_domain` gives them.
        settings: MTU and rate of the links.

    Raises:
        ConfigError: a host has a name that the testbed needs itself.
        ClusterError: a namespace's name is taken, or the system refused; the message says where.
    """
    testbed = _lay_out(name, domain)
    prepare: dict[str, Callable[[], None]] = {_management_netns(name): wiring.prepare_management}
    prepare |= {router_netns: wiring.prepare_router for _, router_netns in testbed.routers}
    prepare |= {host.netns: wiring.prepare_host for host in testbed.hosts}
    _refuse_taken(name, list(prepare))
    made: list[str] = []
    try:
        for new, settle in prepare.items():
            with _told_of(new):
                netns.create(new, _mark(name))
            made.append(new)
            _visit(new, settle)
        _wire(testbed, domain, settings)
    except BaseException as error:
        # If already the first name is taken, another build of this testbed came in between: all there is is its.
        if made or not isinstance(error.__cause__, FileExistsError):
            remove(name)
        raise
    log.debug("testbed %s is up: %d hosts, %d planes", name, len(testbed.hosts), len(testbed.routers))
    return testbed


def remove(name: str) -> list[str]:
    """Remove all that `build` made for that name, be it whole, half-built or left by a killed process.

    Returns:
        The namespaces that were removed; none if there was no such testbed.

    Raises:
        ClusterError: the system refused.
    """
    removed = []
    owned = _owned(name)
    for there in owned:
        if netns.is_mounted(there):
            removed.append(there)
            # A process that is still inside keeps the namespace; its links shall be gone all the same.
            with suppress(netns.NoNetnsError):  # another `remove` was faster
                _visit(there, wiring.delete_links)
    for there in owned:
        with _told_of(there):
            netns.delete(there)
    return removed


def names() -> list[str]:
    """Names of all testbeds of this machine, also of half-built and left ones."""
    prefix = _mark("")
    marks = {netns.mark_of(there) or "" for there in netns.named("msl-")}
    return sorted(mark.removeprefix(prefix) for mark in marks if mark.startswith(prefix))


def _lay_out(name: str, domain: DomainPlan) -> Testbed:
    names = Counter(["mgmt", *(router.name for router in domain.routers), *(host.name for host in domain.hosts)])
    for twice in (again for again, count in names.items() if count > 1):
        raise ConfigError(f"hosts: the testbed has a node {twice!r} of its own; give the host another name")
    interfaces = tuple(wiring.fabric_interface(plane) for plane in range(1, len(domain.routers) + 1))
    hosts = tuple(
        TestbedHost(host.name, _netns(name, host.name), f"10.66.{index // 200}.{10 + index % 200}", interfaces)
        for index, host in enumerate(domain.hosts)
    )
    routers = tuple((router.name, _netns(name, router.name)) for router in domain.routers)
    return Testbed(name, hosts, routers, tuple(str(host.locator) for host in domain.hosts))


def _wire(testbed: Testbed, domain: DomainPlan, settings: TestbedConfig) -> None:
    hosts = [host.netns for host in testbed.hosts]
    for plane, (router, (_, there)) in enumerate(zip(domain.routers, testbed.routers, strict=True), start=1):
        _visit(there, partial(wiring.set_up_router, router, plane, domain, hosts, settings))
    addresses = [IPv4Interface(f"{host.address}/{_MANAGEMENT.network.prefixlen}") for host in testbed.hosts]
    ports = list(zip(hosts, addresses, strict=True))
    _visit(_management_netns(testbed.name), partial(wiring.set_up_management, _MANAGEMENT, ports))
    for host, (there, address) in zip(domain.hosts, ports, strict=True):
        _visit(there, partial(wiring.set_up_host, host, domain, settings))
        _visit(there, partial(wiring.join_management, address))


def _refuse_taken(name: str, wanted: list[str]) -> None:
    if owned := _owned(name):
        raise ClusterError(
            f"testbed {name}: is there already ({', '.join(owned)}); remove it first, or take another name"
        )
    for taken in sorted(set(wanted) & set(netns.named(""))):
        mark = netns.mark_of(taken)
        whose = mark.removeprefix("msl ") if mark and mark.startswith("msl ") else "somebody else"
        raise ClusterError(
            f"testbed {name}: the network namespace {taken} belongs to {whose}; take another cluster.name, or remove"
            f" it with 'ip netns delete {taken}'"
        )


def _owned(name: str) -> list[str]:
    return [there for there in netns.named(_netns(name, "")) if netns.mark_of(there) == _mark(name)]


def _mark(name: str) -> str:
    return f"msl testbed {name}"


def _netns(name: str, node: str) -> str:
    return f"msl-{name}-{node}"


def _management_netns(name: str) -> str:
    return _netns(name, "mgmt")


def _visit(there: str, call: Callable[[], None]) -> None:
    with _told_of(there):
        netns.inside(there, call)


@contextmanager
def _told_of(there: str) -> Iterator[None]:
    """The kernel's refusals as msl's own, with the place."""
    try:
        yield
    except OSError as error:
        need = "; a testbed needs root" if isinstance(error, PermissionError) else ""
        raise ClusterError(f"network namespace {there}: {error.strerror}{need}") from error
    except NetlinkError as error:
        raise ClusterError(f"network namespace {there}: {os.strerror(error.code)}") from error
