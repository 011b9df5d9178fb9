"""The agent of a host as a service: leases of chains, their paths and who may change them, and what is measured."""

from __future__ import annotations

import logging
import threading
import time

from msl.actors.claims import Claims
from msl.net.measure.sampler import Errand, Sampler, try_way
from msl.net.sfc import path
from msl.net.sfc.agent import HostAgent
from msl.net.sfc.report import ChangeReport, HostReport, report_of
from msl.plan import ChainPlan, DomainPlan
from msl.plan.addressing import SegmentList
from msl.plan.paths import Way
from msl.steering.readings import HostReading

log = logging.getLogger(__name__)

_SWEEP_S = 1.0
_LEASE_S = 60.0
"""A chain whose driver has not been heard of for so long is removed."""
_WATCHED_S = 10.0
"""Nobody has observed for so long, and the host stops measuring."""
_KEPT_CHANGES = 100


class AgentService:
    """A `HostAgent` that sweeps by itself and removes chains whose driver is gone; for a Ray actor.

    Args: as `HostAgent`'s.
    """

    def __init__(self, domain: DomainPlan, host: str, interfaces: tuple[str, ...], mtu: int | None) -> None:
        self._agent = HostAgent(domain, host, interfaces, mtu)
        self._lock = threading.Lock()
        self._leases: dict[int, float] = {}
        self._claims = Claims()
        self._changes: dict[int, list[ChangeReport]] = {}
        self._samplers: dict[int, Sampler] = {}
        self._observed_s: dict[int, float] = {}
        self._first_version = time.monotonic_ns()  # another one than that of an agent before this one
        self._versions: dict[int, int] = {}
        self.done = self._agent.apply()
        threading.Thread(target=self._sweep, name="msl-sweep", daemon=True).start()

    def ready(self) -> str:
        """What was done when the agent started."""
        return self.done

    def chains(self) -> dict[int, ChainPlan]:
        """Chains that pass this host, by number."""
        with self._lock:
            return dict(self._agent.chains)

    def add_chain(self, chain: ChainPlan) -> None:
        """Make this host's part of a chain."""
        with self._lock:
            self._agent.add_chain(chain)
            self._leases[chain.number] = time.monotonic()

    def remove_chain(self, number: int) -> None:
        """Undo it."""
        with self._lock:
            self._forget(number)
            self._agent.remove_chain(number)

    def renew(self, chain: ChainPlan) -> HostReport:
        """The chain's driver lives; tells how the host is. An agent that was restarted gets to know its chain."""
        with self._lock:
            if chain.number not in self._leases:
                self._agent.add_chain(chain)
            self._leases[chain.number] = time.monotonic()
            return self._report()

    def report(self) -> HostReport:
        """How the host is."""
        with self._lock:
            return self._report()

    # -- paths

    def claim(self, number: int, holder: str) -> None:
        """At the source's host: be the one controller of a chain, for some seconds; repeated while it controls.

        Raises:
            NetworkError: another one is.
        """
        with self._lock:
            self._claims.take(number, holder)

    def hold(self, number: int, held: bool) -> None:
        """At the source's host: keep a path that was set by hand, or leave it to the controller again."""
        with self._lock:
            self._claims.hold(number, held)
            self._note_version(number)

    def path(self, number: int) -> tuple[SegmentList, int, bool]:
        """At the source's host: a chain's segment list, its generation, and whether it is held by hand."""
        with self._lock:
            head = path.head_end(self._agent, number)
            return head.segments, head.generation, self._claims.is_held(number)

    def returns(self, number: int) -> dict[int, SegmentList]:
        """Ways back of a chain's hops that end here and do not mirror those forward, by hop."""
        with self._lock:
            return path.returns_here(self._agent, number)

    def steer(self, number: int, segments: SegmentList, holder: str | None = None, known: int | None = None) -> int:
        """At the source's host: change the path of a chain.

        Args:
            number: of the chain.
            segments: the new path.
            holder: the controller that does it; None by hand.
            known: generation of the path that it was decided for.

        Raises:
            NetworkError: it is no path of the chain, the path is another one by now, or the controller is not, or no
                more, the one that controls it.
        """
        with self._lock:
            self._claims.check(number, holder)
            generation = path.change(self._agent, number, segments, known)
            self._claims.changed(number, holder)
            self._note_version(number)
            return generation

    def set_return(self, number: int, hop: int, segments: SegmentList | None, generation: int) -> None:
        """At a hop's far end: its way back; see `msl.net.sfc.path.set_return`."""
        with self._lock:
            path.set_return(self._agent, number, hop, segments, generation)

    def teach(self, number: int, segments: SegmentList, generation: int) -> int:
        """At a stop: let silent flows learn a path; see `msl.net.sfc.path.teach`."""
        with self._lock:
            return path.teach(self._agent, number, segments, generation)

    def await_path(self, number: int, generation: int, timeout_s: float) -> bool:
        """At a stop: wait for the first packet over a path; see `msl.net.sfc.path.await_path`."""
        return path.await_path(self._agent, number, generation, timeout_s)

    def try_ways(self, ways: list[tuple[str, Way]], timeout_s: float) -> dict[tuple[str, Way], str]:
        """Send packets of full size over ways to peers and back; what is wrong with those that do not carry them."""
        found = {trip: try_way(self._agent, *trip, timeout_s) for trip in ways}
        return {trip: wrong for trip, wrong in found.items() if wrong is not None}

    def note_change(self, number: int, change: ChangeReport) -> None:
        """At the source's host: keep what is to be told of a change."""
        with self._lock:
            self._changes.setdefault(number, []).append(change)
            del self._changes[number][:-_KEPT_CHANGES]

    # -- measuring

    def watch(self, errand: Errand) -> None:
        """Begin to measure for a chain, or measure something else. It ends when nobody observes any more."""
        with self._lock:
            number = errand.number
            self._observed_s[number] = time.monotonic()
            if number in self._samplers:
                self._samplers[number].change(errand)
            elif number in self._agent.chains:
                self._samplers[number] = Sampler(self._agent, self._agent.chains[number], errand)

    def observe(self, number: int, since: int, patience_s: float) -> tuple[int, HostReading, int] | None:
        """A reading, at once if there is news since another one; None if nothing is measured.

        Returns:
            The reading's number; the reading; at the source's host also what tells one state of the path, and of who
            holds it, from another.
        """
        with self._lock:
            sampler = self._samplers.get(number)
            self._observed_s[number] = time.monotonic()
        if sampler is None:
            return None
        found = sampler.observe(since, patience_s)
        with self._lock:
            return *found, self._versions.get(number, self._first_version)

    def expense(self) -> tuple[float, int]:
        """What measuring has taken so far: seconds of CPU time, bytes of probes."""
        with self._lock:
            samplers = self._samplers.values()
            return sum(one.cpu_s for one in samplers), sum(one.bytes_sent for one in samplers)

    def undo(self) -> list[str]:
        """Remove all that was made on this host."""
        with self._lock:
            for number in {*self._leases, *self._samplers}:
                self._forget(number)
            return self._agent.undo()

    def _note_version(self, number: int) -> None:
        self._versions[number] = self._versions.get(number, self._first_version) + 1
        if number in self._samplers:
            self._samplers[number].tell()

    def _report(self) -> HostReport:
        changes = {number: tuple(told) for number, told in self._changes.items()}
        return report_of(self._agent, changes, self._claims.holders())

    def _forget(self, number: int) -> None:
        self._leases.pop(number, None)
        self._changes.pop(number, None)
        self._claims.forget(number)
        self._stop_measuring(number)

    def _stop_measuring(self, number: int) -> None:
        self._observed_s.pop(number, None)
        sampler = self._samplers.pop(number, None)
        if sampler is not None:
            sampler.close()

    def _sweep(self) -> None:
        begin = time.monotonic()
        while True:
            time.sleep(_SWEEP_S)
            with self._lock:
                try:
                    self._agent.sweep()
                    if begin and time.monotonic() - begin > _LEASE_S:
                        begin = 0.0
                        self._agent.remove_strangers()
                    for number, renewed in list(self._leases.items()):
                        if time.monotonic() - renewed > _LEASE_S:
                            log.warning("chain %d: its driver is gone; removed", number)
                            self._forget(number)
                            self._agent.remove_chain(number)
                    for number, observed in list(self._observed_s.items()):
                        if time.monotonic() - observed > _WATCHED_S:
                            self._stop_measuring(number)
                except Exception:
                    log.exception("host %s: the sweep failed; tried again", self._agent.host.name)
