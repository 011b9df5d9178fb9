"""One member of the benchmarked chains as a Ray actor: the same process for all sides."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import ray

from msl.bench.fabric import iperf
from msl.bench.fabric.bare import BareRelay, BareSink, BareSource
from msl.bench.fabric.framed import FramedNsf, FramedSink, FramedSource
from msl.bench.fabric.order import CONNECT_S, IN_FLIGHT, SILENCE_S, Order, Tally
from msl.bench.window import Passed
from msl.net.fabric import DirectFabric, Endpoint, Fabric
from msl.net.handshake import Hello
from msl.net.hop import HopPlan
from msl.net.sfc.fabric import SfcFabric
from msl.pipeline.runtime import set_threads
from msl.plan import ChainPlan, Place

_FRAME_ROOM = 4096
"""Bytes of a frame's body besides the message."""


class Side(NamedTuple):
    """A chain of the benchmark."""

    name: str
    loop: Literal["framed", "bare"]
    """What stands at its members."""
    chain: ChainPlan | None
    """Its place in the SR domain; None with the fabric `direct`."""


class Seat(NamedTuple):
    """What an actor must know to be a member of all sides."""

    place: Place
    address: str
    """Of its host in the fabric."""
    job: str
    largest: int
    """Bytes of the largest message."""


@ray.remote
class FabricHost:
    """A member of every side.

    Args:
        seat: which one.
        sides: by name.
    """

    def __init__(self, seat: Seat, sides: Mapping[str, Side]) -> None:
        set_threads(1)
        self._seat = seat
        self._sides = sides
        self._members: dict[str, Any] = {}

    def listen(self, name: str) -> Endpoint | None:
        """Listen for the previous hop of a side; returns where. The source listens nowhere."""
        place = self._seat.place
        if place.role == "source":
            return None
        side, fabric = self._sides[name], self._fabric(name, None)
        if side.loop == "framed":
            member: Any = (FramedSink if place.role == "sink" else FramedNsf)(fabric, self._hop_plan())
        else:
            member = BareSink(fabric, self._seat.largest) if place.role == "sink" else BareRelay(fabric)
        self._members[name] = member
        endpoint: Endpoint = member.endpoint
        return endpoint

    def open(self, name: str, next_hop: Endpoint | None) -> None:
        """Open a side's chain onward: in the background, but at the source."""
        fabric = self._fabric(name, next_hop)
        if self._seat.place.role != "source":
            self._members[name].open(fabric)
        elif self._sides[name].loop == "framed":
            self._members[name] = FramedSource(fabric, self._hop_plan())
        else:
            self._members[name] = BareSource(fabric)

    def prepare(self, name: str, order: Order) -> None:
        """Sink: what the next messages of a side will be."""
        self._members[name].prepare(order)

    def measure(self, name: str, order: Order) -> Passed:
        """Source: send messages over a side for a while."""
        passed: Passed = self._members[name].measure(order)
        return passed

    def tally(self, name: str) -> Tally:
        """Source: what was sent over a side so far; sink: what was received."""
        tally: Tally = self._members[name].tally
        return tally

    def cpu_s(self) -> float:
        """CPU time of this process so far, user and system."""
        return time.process_time()

    def serve_iperf(self) -> None:
        """Start an iperf3 server, which ends with the cluster."""
        self._server = iperf.serve()

    def ask_iperf(self, address: str, seconds: float, reverse: bool) -> iperf.Transfer:
        """Measure with an iperf3 client."""
        return iperf.ask(address, seconds, reverse)

    def _fabric(self, name: str, next_hop: Endpoint | None) -> Fabric:
        chain = self._sides[name].chain
        if chain is None:
            return DirectFabric(self._seat.address, next_hop, CONNECT_S)
        return SfcFabric(chain, self._seat.place.hop, CONNECT_S)

    def _hop_plan(self) -> HopPlan:
        place, job, largest = self._seat.place, self._seat.job, self._seat.largest
        following = None if place.role == "sink" else f"hop {place.hop + 1}"
        hello = Hello(job, place.hop, "bench", IN_FLIGHT)
        return HopPlan(hello, place.name, place.host, following, largest + _FRAME_ROOM, CONNECT_S, SILENCE_S)
