"""Where the time of a request goes, hop by hop, from traced requests; and what memory each hop takes."""

from __future__ import annotations

from collections.abc import Sequence

from msl.bench.inference.latency import case_of
from msl.bench.inference.sides import Field
from msl.bench.result import Sample, take_turns
from msl.net.trace import Trace
from msl.plan import Plan

_REQUESTS = 10
"""Of a side in a round."""
_LARGEST = 32
MIB = 2**20
TOTALS = {
    "network": "network, all hops, both ways",
    "socket": "sending and receiving in the processes",
    "moved": "both of them together",
    "serialise": "from tensors to frames and back",
    "queue": "waiting to be computed",
    "compute": "computing",
    "sum": "the whole request",
}
"""Parts over all hops."""
DISJOINT = ("moved", "serialise", "queue", "compute", "sum")
"""Of them, what does not depend on whether a sender or its receiver goes on first, and the sum."""
_PARTS = ("network", "queue", "compute", "serialise", "socket")


def traced_batches(batches: Sequence[int]) -> list[int]:
    """The sizes that are traced: the smallest, and the largest that is not too large."""
    return sorted({batches[0], max((batch for batch in batches if batch <= _LARGEST), default=batches[0])})


class Where:
    """Traced requests over each fabric, in turns.

    Args:
        field: the sides.
        batches: samples of a request, in rising order.
    """

    def __init__(self, field: Field, batches: Sequence[int]) -> None:
        self._field = field
        self.batches = traced_batches(batches)
        self.times: dict[str, list[Sample]] = {case_of(batch): [] for batch in self.batches}
        """Milliseconds of each part of each request, by size of the batch."""
        self.memory: list[Sample] = []
        """Resident MiB of each hop."""

    def round(self, turn: int) -> None:
        """Trace some requests over each fabric; round 0 is not counted."""
        services = self._field.services
        for batch in self.batches:
            inputs, _ = self._field.questions.draw(turn, batch)
            for place, side in take_turns(list(services), turn):
                for _ in range(_REQUESTS if turn else 1):
                    spent = parts_ms(services[side].traced(inputs), self._field.plan)
                    if turn:
                        found = self.times[case_of(batch)]
                        found += [Sample(turn, place, part, side, value) for part, value in spent.items()]
        if turn:
            for place, (side, service) in enumerate(services.items()):
                self.memory += [
                    Sample(turn, place, report.name, side, report.rss_bytes / MIB) for report in service.chain.reports()
                ]


def hop_cases(plan: Plan) -> dict[str, str]:
    """What is known of a request, hop by hop and over all hops: name of each part to how it is shown."""
    cases = {"client_serialise": "client: serialise", "client_socket": "client: socket"}
    for member in plan.members[1:]:
        name = member.place.name
        for part in _PARTS:
            shown = "network to it, both ways" if part == "network" else part
            cases[f"{name}_{part}"] = f"{name} on {member.place.host}: {shown}"
    return cases | {f"all_{part}": f"**{shown}**" for part, shown in TOTALS.items()}


def parts_ms(trace: Trace, plan: Plan) -> dict[str, float]:
    """Milliseconds of each part of a request, by the names of `hop_cases`."""
    found = {"client_serialise": trace.client.serialise_ns / 1e6, "client_socket": trace.client.socket_ns / 1e6}
    for member, hop, network_ns in zip(plan.members[1:], trace.hops, trace.network_ns, strict=True):
        spent_ns = (network_ns, hop.queue_ns, hop.compute_ns, hop.serialise_ns, hop.socket_ns)
        found |= {f"{member.place.name}_{part}": ns / 1e6 for part, ns in zip(_PARTS, spent_ns, strict=True)}
    for part in _PARTS:
        found[f"all_{part}"] = sum(value for name, value in found.items() if name.endswith(f"_{part}"))
    found["all_moved"] = found["all_network"] + found["all_socket"]
    return found | {"all_sum": trace.total_ns / 1e6}
