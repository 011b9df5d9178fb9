"""A chain's path drawn on its hosts, routers and links, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from msl.net.measure.links import UNLIMITED_MBIT
from msl.net.sfc.report import HostReport
from msl.plan import ChainPlan
from msl.plan.paths import Path, hops_of

_WIDTH, _MARGIN = 190, 110
_ROW = 170
_FORWARD, _BACKWARD = "#c0392b", "#2471a3"
_IDLE, _BUSY = (205, 205, 205), (230, 126, 34)


@dataclass(frozen=True)
class Load:
    """Of a host's link to a router."""

    out_mbit: float
    in_mbit: float
    rate_mbit: float

    @property
    def share(self) -> float:
        """How full it is, in the fuller direction."""
        return max(self.out_mbit, self.in_mbit) / self.rate_mbit


def loads_between(before: Mapping[str, HostReport], now: Mapping[str, HostReport]) -> dict[tuple[str, str], Load]:
    """What each link carried between two reports, by host and router."""
    found = {}
    for host, report in now.items():
        earlier = {link.interface: link for link in before[host].links}
        seconds = max(1e-3, report.monotonic_s - before[host].monotonic_s)
        for link in report.links:
            was = earlier.get(link.interface, link)
            for router in link.routers:
                found[host, router] = Load(
                    (link.bytes_out - was.bytes_out) * 8e-6 / seconds,
                    (link.bytes_in - was.bytes_in) * 8e-6 / seconds,
                    link.rate_mbit or UNLIMITED_MBIT,
                )
    return found


def draw(
    chain: ChainPlan,
    path: Path,
    hosts: Sequence[str],
    routers: Sequence[str],
    loads: Mapping[tuple[str, str], Load],
) -> str:
    """The picture.

    Args:
        chain: whose path is drawn.
        path: as it stands.
        hosts: all of the SR domain.
        routers: all of the SR domain.
        loads: of the links, by host and router.
    """
    order = [chain.source, *(stop.host for stop in chain.stops)]
    row = list(dict.fromkeys([*order, *hosts]))
    places: dict[str, tuple[float, float]] = {host: (_MARGIN + _WIDTH * index, 0.0) for index, host in enumerate(row)}
    width = 2 * _MARGIN + _WIDTH * (len(row) - 1)
    above, below = routers[0::2], routers[1::2]
    for index, router in enumerate(above):
        places[router] = (width / 2 + 60 * index, -_ROW * (1 + index * 0.5))
    for index, router in enumerate(below):
        places[router] = (width / 2 + 60 * index, _ROW * (1 + index * 0.5))
    top = min(y for _, y in places.values()) - 60
    height = max(y for _, y in places.values()) + 110 - top
    parts = [_link(places[host], places[router], load) for (host, router), load in loads.items()]
    for hop, (near, far) in enumerate(hops_of(chain)):
        parts.append(_way(places, near, path.forward[hop] or _routed(near, far, loads), far, _FORWARD, 5))
        parts.append(_way(places, far, path.back[hop] or _routed(far, near, loads), near, _BACKWARD, 5))
    members = {chain.source: ["source"]}
    for stop in chain.stops:
        members.setdefault(stop.host, []).append(stop.name)
    parts += [_node(places[host], host, ", ".join(members.get(host, ["-"]))) for host in row]
    parts += [_node(places[router], router, "router", "#f4f6f7", 30) for router in routers]
    legend = (
        f'<text x="12" y="{top + height - 34:.0f}" fill="{_FORWARD}">forward: activations</text>'
        f'<text x="12" y="{top + height - 14:.0f}" fill="{_BACKWARD}">backward: gradients, answers</text>'
    )
    title = escape(f"{chain.job}, chain {chain.number}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {top:.0f} {width:.0f} {height:.0f}"'
        f' width="{width:.0f}" height="{height:.0f}" font-family="sans-serif" font-size="13">\n'
        f"<title>{title}</title>\n"
        f'<rect x="0" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" fill="white"/>\n'
        f'<text x="12" y="{top + 22:.0f}" font-weight="bold">{title}</text>\n'
        + "\n".join((*parts, legend))
        + "\n</svg>\n"
    )


def _routed(near: str, far: str, loads: Mapping[tuple[str, str], Load]) -> tuple[str, ...]:
    """The router that both hosts have first: that of the plane through which the hosts' routes lead."""
    both = [router for host, router in loads if host == near and (far, router) in loads]
    return tuple(both[:1])


def _link(host: tuple[float, float], router: tuple[float, float], load: Load) -> str:
    share = min(1.0, load.share)
    colour = "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(_IDLE, _BUSY, strict=True))
    x, y = host[0] + 0.35 * (router[0] - host[0]), host[1] + 0.35 * (router[1] - host[1])
    label = f"{load.out_mbit:.0f} / {load.in_mbit:.0f} Mbit/s, {load.share:.0%}"
    return (
        f'<line x1="{host[0]:.0f}" y1="{host[1]:.0f}" x2="{router[0]:.0f}" y2="{router[1]:.0f}" stroke="{colour}"'
        f' stroke-width="{3 + 9 * share:.1f}"/>'
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="10" text-anchor="middle" fill="#566573">{label}</text>'
    )


def _way(
    places: Mapping[str, tuple[float, float]], near: str, routers: Sequence[str], far: str, colour: str, aside: float
) -> str:
    """A polyline a little to the right of its direction of travel, so that both directions can be seen."""
    nodes = [places[near], *(places[router] for router in routers), places[far]]
    points = []
    for a, b in pairwise(nodes):
        length = ((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2) ** 0.5 or 1.0
        dx, dy = -(b[1] - a[1]) / length * aside, (b[0] - a[0]) / length * aside
        points += [f"{a[0] + dx:.1f},{a[1] + dy:.1f}", f"{b[0] + dx:.1f},{b[1] + dy:.1f}"]
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2.5" opacity="0.85"/>'


def _node(at: tuple[float, float], name: str, role: str, fill: str = "#eaf2f8", half: float = 46) -> str:
    x, y = at
    return (
        f'<rect x="{x - half:.0f}" y="{y - 20:.0f}" width="{2 * half:.0f}" height="40" rx="6" fill="{fill}"'
        f' stroke="#34495e"/><text x="{x:.0f}" y="{y - 3:.0f}" text-anchor="middle" font-weight="bold">{escape(name)}'
        f'</text><text x="{x:.0f}" y="{y + 13:.0f}" text-anchor="middle" font-size="11">{escape(role)}</text>'
    )
