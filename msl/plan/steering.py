"""The SR domain of a job: its nodes, and the chain's SIDs, service address and segment list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from msl.config import Config
from msl.errors import ConfigError
from msl.plan.addressing import (
    Locator,
    SegmentList,
    Sid,
    SrDomain,
    alias,
    chain_sid,
    decap_sid,
    end_sid,
    node_address,
    overhead,
    overlap,
    probes_sid,
    turn_sid,
)
from msl.plan.layout import Place


@dataclass(frozen=True)
class SrHost:
    """A host of the SR domain."""

    name: str
    locator: Locator

    @property
    def address(self) -> IPv6Address:
        """The host's own address in the domain."""
        return node_address(self.locator)

    @property
    def decap(self) -> Sid:
        """SID at which the replies to its head-end arrive."""
        return decap_sid(self.locator)

    @property
    def turn(self) -> Sid:
        """SID at which probes of other hosts turn."""
        return turn_sid(self.locator)

    @property
    def probes(self) -> Sid:
        """SID at which the host's own probes end."""
        return probes_sid(self.locator)


@dataclass(frozen=True)
class SrRouter:
    """A router of the SR domain."""

    name: str
    sid: Sid
    locator: Locator | None = None
    """Its locator, if the router is the testbed's."""


@dataclass(frozen=True)
class DomainPlan:
    """What the nodes of an SR domain must know, whatever chains they serve."""

    block: IPv6Network
    hosts: tuple[SrHost, ...]
    routers: tuple[SrRouter, ...]
    max_segments: int

    @property
    def overhead(self) -> int:
        """Bytes that the longest segment list adds to a packet."""
        return overhead(self.max_segments)

    def host(self, name: str) -> SrHost:
        """The host of that name."""
        return next(host for host in self.hosts if host.name == name)

    def router(self, name: str) -> SrRouter:
        """The router of that name.

        Raises:
            ConfigError: there is none.
        """
        for router in self.routers:
            if router.name == name:
                return router
        names = ", ".join(router.name for router in self.routers) or "none"
        raise ConfigError(f"sr.via: {name!r}: no such router; there are {names}")


@dataclass(frozen=True)
class Stop:
    """A place of a chain that its segment list passes: an NSF or the sink."""

    hop: int
    name: str
    host: str
    sid: Sid
    service: IPv6Address
    """The service address as it is seen on this host at this place; see `msl.plan.addressing.alias`."""


@dataclass(frozen=True)
class ChainPlan:
    """One chain through an SR domain."""

    number: int
    """Counts the domain's chains from 1."""
    job: str
    service: IPv6Address
    port: int
    source: str
    """Host of the source."""
    stops: tuple[Stop, ...]
    """The NSFs and the sink in travel order."""
    segments: SegmentList
    """The path: SIDs of the stops, and waypoints between them."""

    @property
    def sids(self) -> SegmentList:
        """SIDs of the stops in travel order."""
        return tuple(stop.sid for stop in self.stops)


def lay_domain(config: Config, hosts: Sequence[str]) -> DomainPlan:
    """The SR domain of a configuration.

    Args:
        config: what was asked for.
        hosts: names of all hosts, as `lay_out` gives them.

    Raises:
        ConfigError: addresses overlap.
    """
    domain = SrDomain(IPv6Network(config.sr.block))
    given = {host.name: host.locator for host in config.hosts if host.locator is not None}
    nodes = tuple(
        SrHost(name, Locator(IPv6Network(given[name])) if name in given else domain.host_locator(index))
        for index, name in enumerate(hosts)
    )
    if config.cluster.address is None:
        routers = tuple(
            SrRouter(f"r{i + 1}", end_sid(domain.router_locator(i)), domain.router_locator(i))
            for i in range(config.testbed.planes)
        )
    else:
        routers = tuple(SrRouter(router.name, Sid(IPv6Address(router.sid))) for router in config.sr.routers)
    _check_overlap(domain.block, nodes, routers)
    return DomainPlan(domain.block, nodes, routers, config.sr.max_segments)


def lay_chain(config: Config, domain: DomainPlan, places: Sequence[Place], number: int) -> ChainPlan:
    """The job's chain through its SR domain.

    Args:
        config: what was asked for.
        domain: the SR domain.
        places: the members, as `lay_out` gives them.
        number: which chain of the domain this is; from 1.

    Raises:
        ConfigError: the hosts cannot be steered through, or the path is too long.
    """
    service = IPv6Address(config.sr.service or SrDomain(domain.block).service_address(number))
    source, *others = places
    sink = others[-1]
    for place in others:
        if place.host == source.host:
            raise ConfigError(
                f"chain: {place.name} stands on the source's host {source.host}; with the fabric sfc the source needs"
                " a host of its own (its replies would never leave it); use another host, or fabric direct"
            )
    _check_service(service, domain)
    # On a host the sink sees the address itself, so that an unmodified server can be one.
    taken = {sink.host: 1}
    stops = []
    for place in others:
        index = 0 if place is sink else taken.get(place.host, 0)
        taken[place.host] = index + 1
        sid = chain_sid(domain.host(place.host).locator, number, place.hop)
        stops.append(Stop(place.hop, place.name, place.host, sid, alias(service, index)))
    segments: list[Sid] = []
    for stop, router in zip(stops, _waypoints(config, len(stops)), strict=True):
        if router is not None:
            segments.append(domain.router(router).sid)
        segments.append(stop.sid)
    if len(segments) > domain.max_segments:
        raise ConfigError(
            f"sr.max_segments: {domain.max_segments}: the path has {len(segments)} segments; raise it, or pass fewer"
            " waypoints"
        )
    return ChainPlan(number, config.name, service, config.sr.port, source.host, tuple(stops), tuple(segments))


def _waypoints(config: Config, hops: int) -> tuple[str | None, ...]:
    via = config.sr.via
    if via is None or isinstance(via, str):
        return (via,) * hops
    if len(via) != hops:
        raise ConfigError(f"sr.via: names {len(via)} waypoints, the chain has {hops} hops; give one (or null) for each")
    return via


def _check_overlap(block: IPv6Network, hosts: Sequence[SrHost], routers: Sequence[SrRouter]) -> None:
    named = [(f"locator of host {host.name} ({host.locator})", IPv6Network(host.locator)) for host in hosts]
    named += [(f"SID of router {router.name} ({router.sid})", IPv6Network(router.sid)) for router in routers]
    clash = overlap(named)
    if clash is not None:
        raise ConfigError(f"sr: {clash[0]} and {clash[1]} overlap; give each node its own")
    for name, network in named:
        if not network.subnet_of(block):
            raise ConfigError(f"sr.block: {block} does not hold the {name}; all of the SR domain is in it")


def _check_service(service: IPv6Address, domain: DomainPlan) -> None:
    for host in domain.hosts:
        if service in host.locator:
            raise ConfigError(f"sr.service: {service} lies in the locator of host {host.name} ({host.locator})")
    if service.is_multicast or service.is_loopback or service.is_link_local or service.is_unspecified:
        raise ConfigError(f"sr.service: {service}: must be a global or unique local unicast address")
