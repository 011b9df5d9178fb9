"""The SR domain as a graph: hosts and routers, links with what they can carry and what they carry now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import networkx as nx

from msl.plan.paths import Way
from msl.steering.readings import HostReading

Edge = tuple[str, str]
"""A link in one direction: from node to node. A host that sends is another node than the same host that receives."""


@dataclass(frozen=True)
class Topology:
    """Links with their rates; `route` says where packets go whose way names no router."""

    rates_mbit: Mapping[Edge, float]
    routes: Mapping[tuple[str, str], Way] = field(default_factory=dict)
    """By two hosts: the routers that are passed in truth if a way names none."""

    def edges(self, source: str, target: str, way: Way) -> list[Edge]:
        """The links of a way from one host to another; none if it names no router and the routes are not known."""
        routers = way or self.routes.get((source, target), ())
        if not routers:
            return []
        nodes = [sending(source), *routers, receiving(target)]
        return list(pairwise(nodes))

    def graph(self) -> nx.DiGraph[str]:
        """The graph, with each link's rate as `rate`. Nothing passes through a host."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_edges_from((a, b, {"rate": rate}) for (a, b), rate in self.rates_mbit.items())
        return graph


def sending(host: str) -> str:
    """The node of a host as a sender."""
    return f"{host}>"


def receiving(host: str) -> str:
    """The node of a host as a receiver."""
    return f">{host}"


def link_name(edge: Edge) -> str:
    """A link as people call it: n0->r1."""
    return "->".join(node.strip(">") for node in edge)


def topology_of(readings: Iterable[HostReading], between: Mapping[Edge, float] | None = None) -> Topology:
    """The graph that the hosts' interfaces make.

    Args:
        readings: of all hosts.
        between: links between routers, which no host measures, with their rates in Mbit/s.
    """
    rates: dict[Edge, float] = dict(between or {})
    routes: dict[tuple[str, str], Way] = {}
    for reading in readings:
        for link in reading.links:
            for router in link.routers:
                if link.up:
                    rates[sending(reading.host), router] = link.rate_mbit
                    rates[router, receiving(reading.host)] = link.rate_mbit
        for peer, default in reading.defaults.items():
            if default is not None:
                routes[reading.host, peer] = (default,)
    return Topology(rates, routes)


def loads_of(readings: Iterable[HostReading]) -> dict[Edge, float]:
    """What each link that a host sees carries now, in Mbit/s."""
    loads: dict[Edge, float] = {}
    for reading in readings:
        for link in reading.links:
            for router in link.routers:
                loads[sending(reading.host), router] = link.out_mbit
                loads[router, receiving(reading.host)] = link.in_mbit
    return loads
