"""The measuring of one host for one chain: a thread that probes and samples, and tells at once what cannot wait."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass

from msl.net.measure.links import Links
from msl.net.measure.prober import Prober
from msl.net.measure.sockets import Sockets
from msl.net.sfc import layout
from msl.net.sfc.agent import HostAgent
from msl.plan.paths import Way
from msl.plan.steering import ChainPlan
from msl.steering.readings import HostReading

log = logging.getLogger(__name__)

_SLOW_S = 0.5
"""Queues and sockets, which cost more to read, are read so often."""
_BEHIND_S = 5.0
"""How often is looked which routers lie behind which link."""
_SMOOTH_S = 0.4
_NEWS = 0.2
"""A link whose utilisation has changed by so much since it was told of is told of at once."""


@dataclass(frozen=True)
class Errand:
    """What a host is to measure for a chain."""

    number: int
    """Of the chain."""
    ways: tuple[tuple[str, Way], ...]
    """To be probed, by peer."""
    used: tuple[tuple[str, Way], ...]
    """Those of them that the chain takes: it is told at once when they do not answer."""
    sample_s: float
    dead_after: int
    """So many rounds without an answer, and it is told."""


class Sampler:
    """Measures until it is closed.

    Args:
        agent: of this host.
        chain: that is steered.
        errand: what is to be measured; can be changed.
    """

    def __init__(self, agent: HostAgent, chain: ChainPlan, errand: Errand) -> None:
        self._agent = agent
        self._chain = chain
        self._errand = errand
        host = agent.host
        routers = {router.name: router.sid for router in agent.domain.routers}
        peers = {other.name: other.address for other in agent.domain.hosts if other.name != host.name}
        self._links = Links(agent.interfaces, routers, peers)
        self._prober = Prober(agent.domain, host, agent.inner_mtu + agent.domain.overhead)
        self._sockets = Sockets(chain, host.name)
        self._socket_readings = self._sockets.readings()
        self._lock = threading.Condition()
        self._sequence = 0
        self._urgent = 0
        """Sequence of the last sample that must be told at once."""
        self._told: dict[str, float] = {}
        self._alarmed: set[tuple[str, Way]] = set()
        self._mbit: dict[tuple[str, int], float] = {}
        self._bytes: dict[tuple[str, int], int] = {}
        self._at_s = time.monotonic()
        self.cpu_s = 0.0
        """CPU time that it has taken."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="msl-sampler", daemon=True)
        self._prober.probe(errand.ways)
        self._thread.start()

    @property
    def bytes_sent(self) -> int:
        """Of probes."""
        return self._prober.bytes_sent

    def change(self, errand: Errand) -> None:
        """Measure something else."""
        with self._lock:
            if errand != self._errand:
                self._errand = errand
                self._prober.probe(errand.ways)
                self._alarmed &= set(errand.used)

    def observe(self, since: int, patience_s: float) -> tuple[int, HostReading]:
        """A reading, with its number: at once if there is news since that one, else after a while."""
        deadline = time.monotonic() + patience_s
        with self._lock:
            while not self._over.is_set() and self._urgent <= since:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                self._lock.wait(left_s)
            while self._sequence <= since and not self._over.is_set() and self._lock.wait(1.0):
                pass
            reading = self._reading()
            for link in reading.links:
                self._told[link.interface] = _utilisation(link.in_mbit, link.out_mbit, link.rate_mbit)
            return self._sequence, reading

    def tell(self) -> None:
        """Have observers told at the next sample, whatever it is."""
        with self._lock:
            self._urgent = self._sequence + 1

    def close(self) -> None:
        """Stop."""
        self._over.set()
        with self._lock:
            self._lock.notify_all()
        self._thread.join(timeout=5.0)
        self._prober.close()
        self._links.close()

    def _run(self) -> None:
        # It must come in time beside busy stages, but take nothing from them while they are on the processor.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        slow_s = behind_s = 0.0
        while not self._over.wait(self._errand.sample_s):
            try:
                with self._lock:
                    now = time.monotonic()
                    self._prober.receive()
                    self._prober.send()
                    changed = self._links.sample()
                    self._sample_traffic(now)
                    if now - slow_s >= _SLOW_S:
                        slow_s = now
                        self._links.sample_queues()
                        self._socket_readings = self._sockets.readings()
                    if now - behind_s >= _BEHIND_S:
                        behind_s = now
                        self._links.look_behind()
                    self._sequence += 1
                    if changed or self._is_news():
                        self._urgent = max(self._urgent, self._sequence)
                    self._lock.notify_all()
                    self.cpu_s = time.thread_time()
            except Exception:
                log.exception("host %s: a sample failed; tried again", self._agent.host.name)

    def _is_news(self) -> bool:
        """Whether something is to be told at once: a way that has fallen silent, or a load that has changed."""
        silent = {trip for trip in self._errand.used if self._prober.missed(*trip) >= self._errand.dead_after}
        fresh = silent - self._alarmed
        self._alarmed = silent
        loads = [
            abs(_utilisation(link.in_mbit, link.out_mbit, link.rate_mbit) - self._told.get(link.interface, 0.0)) > _NEWS
            for link in self._links.readings()
        ]
        return bool(fresh) or any(loads)

    def _sample_traffic(self, now: float) -> None:
        """The chain's own rates, by the proxy's counters."""
        passed, self._at_s = now - self._at_s, now
        weight = passed / (passed + _SMOOTH_S)
        for key, count in self._counts():
            before = self._bytes.get(key)
            self._bytes[key] = count
            if before is not None and passed > 0:
                fresh = max(0, count - before) * 8e-6 / passed
                rate = self._mbit.get(key, 0.0)
                self._mbit[key] = rate + weight * (fresh - rate)

    def _counts(self) -> list[tuple[tuple[str, int], int]]:
        """Bytes that have come in at this host's ends of the chain's hops, by direction and hop."""
        counts = []
        table = self._agent.proxy.table("sids")
        for hop, stop in enumerate(self._chain.stops):
            if stop.host == self._agent.host.name:
                entry = table.get(layout.Address.of(stop.sid))
                if entry is not None:
                    traffic = self._agent.proxy.traffic(entry.index)
                    counts.append((("forward", hop), int(traffic.bytes[layout.Way.IN_FORWARD])))
                    counts.append((("backward", hop + 1), int(traffic.bytes[layout.Way.IN_BACKWARD])))
        if self._chain.source == self._agent.host.name:
            entry = table.get(layout.Address.of(self._agent.host.decap))
            if entry is not None:
                traffic = self._agent.proxy.traffic(entry.index)
                counts.append((("backward", 0), int(traffic.bytes[layout.Way.IN_BACKWARD])))
        return counts

    def _reading(self) -> HostReading:
        return HostReading(
            host=self._agent.host.name,
            at_s=round(self._at_s, 4),
            links=self._links.readings(),
            probes=self._prober.readings(),
            sockets=self._socket_readings,
            forward_mbit=self._rates("forward"),
            backward_mbit=self._rates("backward"),
            defaults=dict(self._links.defaults),
        )

    def _rates(self, direction: str) -> dict[str, float]:
        return {str(hop): round(rate, 3) for (way, hop), rate in self._mbit.items() if way == direction}


def _utilisation(in_mbit: float, out_mbit: float, rate_mbit: float) -> float:
    return max(in_mbit, out_mbit) / rate_mbit


def try_way(agent: HostAgent, peer: str, way: Way, timeout_s: float) -> str | None:
    """Whether a way carries packets of full size to a peer and back; None if it does, else what is wrong."""
    prober = Prober(agent.domain, agent.host, agent.inner_mtu + agent.domain.overhead)
    try:
        prober.probe([(peer, way)])
        deadline = time.monotonic() + timeout_s
        while True:
            prober.send()
            prober.send()  # one of two has a large one
            time.sleep(0.02)
            prober.receive()
            found = {reading.full_size: reading.answered for reading in prober.readings()}
            if not found:
                return "has too many routers to be probed there and back"
            if found[False] and found[True]:
                return None
            if time.monotonic() > deadline:
                return "carries no packets of full size" if found[False] else "carries no packets"
    finally:
        prober.close()
