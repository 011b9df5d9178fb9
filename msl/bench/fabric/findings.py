"""What else came out of the benchmark, and on what it ran: sentences for results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msl.bench.fabric.parts import Bulk, Measured, Part, Steps
from msl.bench.result import spread
from msl.config import Config
from msl.plan import ChainPlan, Place
from msl.plan.addressing import overhead


def setting(config: Config, places: Sequence[Place], chain: ChainPlan) -> str:
    """What all sides have in common: a paragraph."""
    rate = config.testbed.rate_mbit
    limit = "have no rate limit" if rate is None else f"are limited to {rate} Mbit/s each way"
    room = config.testbed.mtu - overhead(config.sr.max_segments)
    path = " → ".join(f"{place.name} on {place.host}" for place in places)
    return (
        f"The chain is {path}. Both fabrics run at once on one testbed: the same hosts, processes and links, which"
        f" {limit} and have an MTU of {config.testbed.mtu}. Packets of `direct` may fill it; those of `sfc` have at"
        f" most {room} bytes before their encapsulation, which leaves room for the {config.sr.max_segments} segments of"
        f" sr.max_segments; the path has {len(chain.segments)}. Both take the routers that the hosts' routes"
        " choose, unless sr.via names others for `sfc`. Each message has a number that source and sink check; in the"
        " round that is not counted a CRC-32 of every byte is compared, too."
    )


def findings(measured: Measured, parts: Mapping[str, Part]) -> dict[str, list[str]]:
    """Sentences by quantity."""
    told: dict[str, list[str]] = {}
    bulk, steps = parts.get("bulk"), parts.get("step")
    if isinstance(bulk, Bulk):
        idle = spread(bulk.idle_s)
        told["cost"] = [
            f"Without traffic the machine spends {idle.median:.3f} ({idle.p10:.3f} to {idle.p90:.3f}) CPU seconds in a"
            " second; that is part of its CPU time above, on all sides.",
            _losses_of_packets(measured),
        ]
    if isinstance(steps, Steps):
        losses = next(iter(steps.losses.values()))
        told["seconds_per_step"] = [
            f"The losses of all {len(losses)} steps are bit-identical over both fabrics; the last one is"
            f" {losses[-1]!r}."
        ]
    return told


def _losses_of_packets(measured: Measured) -> str:
    """Dropped packets and retransmitted segments of the bulk runs, by side."""
    sums: dict[str, list[float]] = {}
    for sample in measured["cost"]:
        if sample.case.startswith("cpu_per_byte"):  # once a run
            before = sums.setdefault(sample.side, [0.0, 0.0, 0.0])
            for index, name in enumerate(("drops", "retransmitted", "messages")):
                before[index] += sample.detail[name]
    shown = [f"`{side}` {drops:.0f} and {again:.0f} in {runs:.0f}" for side, (drops, again, runs) in sums.items()]
    return f"Packets that interfaces dropped, and TCP segments sent again, in so many messages: {', '.join(shown)}."
