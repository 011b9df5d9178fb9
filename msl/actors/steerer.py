"""Changes the path of a running chain: it is tried first, then every hop is told, and the first packet awaited."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msl.errors import NetworkError
from msl.net.sfc.report import ChangeReport
from msl.plan import ChainPlan
from msl.plan.addressing import SegmentList
from msl.plan.paths import Path, Way, hop_names, hops_of, return_segments, segments_of, show, ways_of

if TYPE_CHECKING:
    from msl.actors.agents import Agents

_TRY_S = 1.0
"""A way that carries nothing for so long is refused."""
_AWAIT_S = 2.0
"""So long the first packet over the new path is waited for; then the hops are told."""
_AWAIT_URGENTLY_S = 0.05
_CONTROLLED_S = 0.25
"""The same two for a controller, whose ways have been proven before, and which must be free if another one fails."""


@dataclass(frozen=True)
class Standing:
    """The path of a chain as it stands."""

    path: Path
    segments: SegmentList
    generation: int
    held: bool
    """It was set by hand, and the controller leaves it alone while it carries packets."""


def standing(agents: Agents, chain: ChainPlan) -> Standing:
    """The path of a running chain, as the kernels of its hosts have it.

    Raises:
        NetworkError: the chain is gone.
        ConfigError: its head-end has a path that msl did not make.
    """
    segments, generation, held = agents.call("path", chain.number, hosts=[chain.source])[chain.source]
    forward = ways_of(chain, agents.domain, segments)
    path = Path(forward, (None,) * len(forward))
    routers = {router.sid: router.name for router in agents.domain.routers}
    for found in agents.call("returns", chain.number, hosts=_stop_hosts(chain)).values():
        for hop, back in found.items():
            names = [routers[sid] for sid in back if sid in routers]
            path = path.with_backward(hop, tuple(names))
    return Standing(path, segments, generation, held)


def change_path(
    agents: Agents,
    chain: ChainPlan,
    before: Standing,
    after: Path,
    reason: str,
    holder: str | None = None,
    urgent: bool = False,
) -> ChangeReport:
    """Change the path of a chain; its connections live on, and no packet is lost by it.

    Args:
        agents: of the domain.
        chain: whose path.
        before: as it stands.
        after: as it shall be.
        reason: told with the change.
        holder: the controller; None by hand.
        urgent: the path before is dead: the ways after have been proven already, and no packet is waited for.

    Raises:
        ConfigError: a router that does not exist, or a path that is too long.
        NetworkError: the new path does not carry packets of full size; nothing was changed then. Or somebody else
            steers the chain.
    """
    segments = segments_of(chain, agents.domain, after.forward)
    begin = time.perf_counter()
    if not urgent:
        try_path(agents, chain, after, None if holder is None else before.path)
    changed = time.perf_counter()
    steered = agents.call("steer", chain.number, segments, holder, before.generation, hosts=[chain.source])
    generation = steered[chain.source]
    _set_returns(agents, chain, before.path, after, generation)
    patience_s = _AWAIT_URGENTLY_S if urgent else _CONTROLLED_S if holder is not None else _AWAIT_S
    first_packet_ms = _see_through(agents, chain, segments, generation, changed, patience_s)
    report = ChangeReport(
        at=time.time(),
        by=holder or "hand",
        before=show(before.path, chain),
        after=show(after, chain),
        reason=reason,
        first_packet_ms=first_packet_ms,
        took_ms=round(1e3 * (time.perf_counter() - begin), 2),
    )
    agents.call("note_change", chain.number, report, hosts=[chain.source])
    return report


def try_path(agents: Agents, chain: ChainPlan, path: Path, known: Path | None = None) -> None:
    """Send packets of full size over every hop of a path, both ways.

    Args:
        agents: of the domain.
        chain: whose path.
        path: that is tried.
        known: a path whose ways need no trial; and with it nobody waits long.

    Raises:
        NetworkError: a hop does not carry them.
    """
    wanted: dict[str, list[tuple[str, Way]]] = {}
    names = {}
    patience_s = _TRY_S if known is None else _CONTROLLED_S
    hops = zip(hop_names(chain), hops_of(chain), path.forward, path.back, strict=True)
    for hop, (name, (near, far), there, back) in enumerate(hops):
        tried = dict.fromkeys((there, tuple(reversed(back))))
        for way in (way for way in tried if known is None or way not in _ways(known, hop)):
            wanted.setdefault(near, []).append((far, way))
            names[near, far, way] = name
    for near, ways in wanted.items():
        for (far, way), wrong in agents.call("try_ways", ways, patience_s, hosts=[near])[near].items():
            through = f"through {', '.join(way)}" if way else "as the routes lead"
            raise NetworkError(
                f"hop {names[near, far, way]}: the way from {near} to {far} {through} {wrong}; the path stays as it is"
            )


def _ways(path: Path, hop: int) -> set[Way]:
    """The ways of a hop, as they are probed from its near end."""
    return {path.forward[hop], tuple(reversed(path.back[hop]))}


def _set_returns(agents: Agents, chain: ChainPlan, before: Path, after: Path, generation: int) -> None:
    """Have the far ends of hops answer over ways of their own, or mirror again.

    Ways that stay are told as well: their packets carry the generation, by which others know what was overtaken.
    """
    for hop, (old, new) in enumerate(zip(before.backward, after.backward, strict=True)):
        if old is None and new is None:
            continue
        segments = None if new is None else return_segments(chain, agents.domain, hop, new)
        host = chain.stops[hop].host
        agents.call("set_return", chain.number, hop, segments, generation, hosts=[host])


def _see_through(
    agents: Agents, chain: ChainPlan, segments: SegmentList, generation: int, changed: float, patience_s: float
) -> float | None:
    """Wait for the first packet over the new path, then tell the hops that it has not reached."""
    first = chain.stops[0].host
    hosts = _stop_hosts(chain)
    if patience_s == _AWAIT_URGENTLY_S and hosts[1:]:
        agents.call("teach", chain.number, segments, generation, hosts=hosts[1:])
    came = agents.call("await_path", chain.number, generation, patience_s, hosts=[first])[first]
    first_packet_ms = round(1e3 * (time.perf_counter() - changed), 2) if came else None
    agents.call("teach", chain.number, segments, generation, hosts=hosts if not came else hosts[1:])
    return first_packet_ms


def _stop_hosts(chain: ChainPlan) -> list[str]:
    return list(dict.fromkeys(stop.host for stop in chain.stops))
