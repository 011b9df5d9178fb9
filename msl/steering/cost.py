"""What a link costs: convex in its utilisation, so that load spreads before links are full.

The piecewise linear function of Fortz and Thorup, Internet Traffic Engineering by Optimizing OSPF Weights (INFOCOM
2000), whose slope grows from 1 on an idle link to 5000 on an overloaded one, and a constant for each link that is
passed, which keeps ways short and chains still while links are idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msl.steering.topology import Edge

_SLOPES = ((0.0, 1.0), (1 / 3, 3.0), (2 / 3, 10.0), (0.9, 70.0), (1.0, 500.0), (1.1, 5000.0))
PER_LINK = 1.0
"""Cost of a link that carries nothing."""


def congestion(utilisation: float) -> float:
    """Cost of a link's load; 0 if it is idle, 10.7 if it is full."""
    cost = 0.0
    for index, (start, slope) in enumerate(_SLOPES):
        if utilisation <= start:
            break
        end = _SLOPES[index + 1][0] if index + 1 < len(_SLOPES) else utilisation
        cost += slope * (min(utilisation, end) - start)
    return cost


def link_cost(load_mbit: float, rate_mbit: float) -> float:
    """Cost of passing a link that carries so much, what passes included."""
    return PER_LINK + congestion(load_mbit / rate_mbit)


def way_cost(edges: Iterable[Edge], loads: Mapping[Edge, float], rates: Mapping[Edge, float], extra: float) -> float:
    """Cost of a way with so many Mbit/s more on each of its links; infinite if a link is missing."""
    total = 0.0
    for edge in edges:
        rate = rates.get(edge)
        if rate is None:
            return float("inf")
        total += link_cost(loads.get(edge, 0.0) + extra, rate)
    return total
