"""The benchmark's own members, as its driver calls them: started, opened, and measured with every sample checked."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from msl.actors.cluster import Session
from msl.bench.calls import Actors, answer
from msl.bench.fabric.host import FabricHost, Seat, Side
from msl.bench.fabric.iperf import Transfer
from msl.bench.fabric.load import Load, Node, read_load
from msl.bench.fabric.order import ANSWER_S, Order, Tally
from msl.bench.window import Passed
from msl.errors import NetworkError
from msl.plan import Place

_CALL_S = 30.0


class Members:
    """An actor for each place of the chain, a member of all sides.

    Args:
        session: the cluster.
        started: starts the actors.
        places: of the chain, source first.
        sides: by name.
        largest: bytes of the largest message.
        start_s: deadline of an actor's start.
    """

    def __init__(
        self,
        session: Session,
        started: Actors,
        places: Sequence[Place],
        sides: Mapping[str, Side],
        largest: int,
        start_s: float,
    ) -> None:
        job = secrets.token_hex(16)
        self._places = places
        self._actors = [
            started.start(FabricHost, node, Seat(place, node.address, job, largest), sides)
            for place in places
            for node in [session.nodes[place.host]]
        ]
        self._call_all("__ray_ready__", start_s)
        for name in sides:
            self._open(name)

    def measure(self, name: str, order: Order) -> Passed:
        """One sample of a side.

        Raises:
            NetworkError: not all messages arrived as they were sent.
            MslError: what else went wrong.
        """
        what = f"{name}, messages of {order.num_bytes} bytes"
        source, sink = self._actors[0], self._actors[-1]
        answer(sink.prepare.remote(name, order), what, _CALL_S)
        passed: Passed = answer(source.measure.remote(name, order), what, order.seconds + 2 * ANSWER_S)
        sent: Tally = answer(source.tally.remote(name), what, _CALL_S)
        received: Tally = answer(sink.tally.remote(name), what, _CALL_S)
        if received != sent or received.wrong:
            raise NetworkError(f"{what}: {sent} was sent, {received} arrived")
        return passed

    def load(self, nodes: Sequence[Node]) -> Load:
        """Counters of machine, members and network."""
        return read_load(nodes, sum(self._call_all("cpu_s", _CALL_S)))

    def serve_iperf(self) -> None:
        """Start an iperf3 server at the sink."""
        answer(self._actors[-1].serve_iperf.remote(), "iperf3 server", _CALL_S)

    def iperf(self, address: str, seconds: float, reverse: bool) -> Transfer:
        """Run iperf3 between source and sink."""
        asked = self._actors[0].ask_iperf.remote(address, seconds, reverse)
        transfer: Transfer = answer(asked, f"iperf3 to {address}", seconds + _CALL_S)
        return transfer

    def _open(self, name: str) -> None:
        ends = self._call_all("listen", _CALL_S, name)
        # The source, which is opened last, waits until all of the chain is open.
        for hop in range(len(ends) - 1, -1, -1):
            following = ends[hop + 1] if hop + 1 < len(ends) else None
            answer(self._actors[hop].open.remote(name, following), f"{name}, hop {hop}", _CALL_S)

    def _call_all(self, method: str, timeout_s: float, *arguments: Any) -> list[Any]:
        asked = [getattr(actor, method).remote(*arguments) for actor in self._actors]
        return [
            answer(reference, f"{place.name} on host {place.host}", timeout_s)
            for place, reference in zip(self._places, asked, strict=True)
        ]
