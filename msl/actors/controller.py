"""The controller of a chain: observes its hosts, decides, and changes the path. One thread beside the chain's driver.

It holds a claim at the source's host that lapses by itself. If it dies, the chain runs on over its last path, and
another controller can take over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import ray
from ray.exceptions import RayError

from msl.actors.agents import Agents
from msl.actors.steerer import Standing, change_path, standing
from msl.config import Config
from msl.errors import MslError, NetworkError
from msl.net.measure.sampler import Errand
from msl.net.sfc.report import ChangeReport
from msl.plan import ChainPlan
from msl.plan.paths import Way, hops_of, show
from msl.steering.decide import Decision
from msl.steering.readings import HostReading
from msl.steering.replay import Recorder
from msl.steering.watch import Beginning, Watch

log = logging.getLogger(__name__)

_CALM_S = 1.0
"""How long a host waits with a reading that has no news."""
_ALERT_S = 0.1
"""The same while something is to be confirmed."""
_CLAIM_EVERY_S = 1.0
_RETRY_S = 1.0


@dataclass(frozen=True)
class Watcher:
    """Who is told what a controller sees and does; called from its thread."""

    say: Callable[[str], None] = lambda _text: None
    reading: Callable[[HostReading], None] = lambda _reading: None
    changed: Callable[[ChangeReport], None] = lambda _change: None
    recording: File | None = None
    """Where all that is measured and decided is kept."""


class Controller:
    """Steers a chain until it is closed.

    Args:
        agents: of the domain.
        chain: the chain.
        config: of its job; `steering` says how.
        watcher: told of it.
    """

    def __init__(self, agents: Agents, chain: ChainPlan, config: Config, watcher: Watcher | None = None) -> None:
        self.holder = f"{socket.gethostname()}:{os.getpid()}"
        self._agents = agents
        self._chain = chain
        self._config = config
        self._watcher = watcher or Watcher()
        self._over = threading.Event()
        self._standing: Standing | None = None
        self._pending: dict[Any, str] = {}
        self._since: dict[str, int] = {}
        self._links: set[tuple[str, str, bool]] = set()
        self._version = self._known_version = 0
        """What tells one state of the path from another, as of the last reading, and as of `_standing`."""
        self._claimed_s = 0.0
        self._stuck: tuple[str, ...] = ()
        self._thread = threading.Thread(target=self._run, name="msl-controller", daemon=True)

    def start(self) -> None:
        """Begin to steer."""
        self._thread.start()

    def close(self) -> None:
        """Leave the path as it is, and end."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)

    def _run(self) -> None:
        complained = ""
        with contextlib.ExitStack() as stack:
            recorder: Recorder | None = None
            while not self._over.is_set():
                try:
                    self._claim()
                    self._standing = standing(self._agents, self._chain)
                    watch = Watch(self._beginning(self._standing))
                    if recorder is None and self._watcher.recording is not None:
                        file = stack.enter_context(self._watcher.recording.open("a", encoding="utf-8"))
                        recorder = Recorder(file, self._beginning(self._standing))
                    self._steer(watch, recorder)
                except MslError as error:
                    if str(error) != complained and not self._over.is_set():
                        complained = str(error)
                        self._watcher.say(f"steering waits: {error}")
                except RayError as error:
                    if self._over.is_set():
                        return
                    log.warning("steering waits: %s", " ".join(str(error).split())[:300])
                self._over.wait(_RETRY_S)

    def _beginning(self, now: Standing) -> Beginning:
        routers = {router.name: router for router in self._config.sr.routers}
        between = tuple(
            (name, other, float(router.rate_mbit)) for name, router in routers.items() for other in router.links
        )
        return Beginning(
            tuple(hops_of(self._chain)),
            now.path,
            tuple(router.name for router in self._agents.domain.routers),
            between,
            self._agents.domain.max_segments,
            self._config.steering.model_dump(),
        )

    def _steer(self, watch: Watch, recorder: Recorder | None) -> None:
        """Observe, decide, change; until something goes wrong."""
        self._send_errands(watch)
        self._pending, self._since, self._links = {}, {}, set()
        while not self._over.is_set():
            self._claim()
            alert = bool(watch.history.better_since_s) or bool(self._stuck)
            self._ask(_ALERT_S if alert else _CALM_S)
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=_CLAIM_EVERY_S)
            fresh = [self._take(done) for done in ready]
            if self._version != self._known_version:
                self._stand(watch, standing(self._agents, self._chain), recorder)
                watch.readings.clear()  # what they tell of the ways may be older than the change
            for reading in fresh:
                watch.take(reading)
                self._watcher.reading(reading)
                if recorder is not None:
                    recorder.reading(reading)
            if fresh and (links := _links_of(watch)) != self._links:
                self._links = links  # there are other ways now
                self._send_errands(watch)
            if fresh and watch.complete:
                self._decide(watch, recorder)

    def _decide(self, watch: Watch, recorder: Recorder | None) -> None:
        now_s = time.monotonic()
        decision = watch.decide(now_s)
        if recorder is not None:
            recorder.decision(now_s, decision)
        self._tell_stuck(decision)
        if not decision.changes:
            return
        assert self._standing is not None
        urgent = any(change.urgent for change in decision.changes)
        before = standing(self._agents, self._chain)
        if before.generation != self._standing.generation or (before.held and not urgent):
            # Somebody has changed it by hand. It stays while it carries packets.
            changed = before.generation != self._standing.generation
            self._stand(watch, before, recorder)
            if changed:
                self._decide(watch, recorder)
            return
        reason = "; ".join(dict.fromkeys(change.reason for change in decision.changes))
        try:
            report = change_path(self._agents, self._chain, before, decision.path, reason, self.holder, urgent)
        except MslError as error:
            self._watcher.say(f"the path stays: {error}")
            self._stand(watch, standing(self._agents, self._chain), recorder)
            return
        self._watcher.say(f"new path: {report.after} (because {reason})")
        self._watcher.changed(report)
        self._stand(watch, standing(self._agents, self._chain), recorder)

    def _stand(self, watch: Watch, now: Standing, recorder: Recorder | None) -> None:
        """The path is another one than was measured for."""
        self._standing = now
        self._known_version = self._version
        if recorder is not None and watch.path != now.path:
            recorder.moved(now.path)
        watch.path = now.path
        self._send_errands(watch)

    def _tell_stuck(self, decision: Decision) -> None:
        if decision.stuck != self._stuck:
            self._stuck = decision.stuck
            assert self._standing is not None
            for text in decision.stuck:
                self._watcher.say(f"the path stays {show(self._standing.path, self._chain)}: {text}")

    def _claim(self) -> None:
        now = time.monotonic()
        if now - self._claimed_s >= _CLAIM_EVERY_S:
            self._agents.call("claim", self._chain.number, self.holder, hosts=[self._chain.source])
            self._claimed_s = now

    def _hosts(self) -> list[str]:
        return list(dict.fromkeys(host for hop in hops_of(self._chain) for host in hop))

    def _ask(self, patience_s: float) -> None:
        """Have every host observed."""
        asked = set(self._pending.values())
        for host in self._hosts():
            if host not in asked:
                since = self._since.get(host, 0)
                reference = self._agents.begin("observe", host, self._chain.number, since, patience_s)
                self._pending[reference] = host

    def _take(self, reference: Any) -> HostReading:
        host = self._pending.pop(reference)
        told = self._agents.finish(host, reference)
        if told is None:
            raise NetworkError(f"host {host}: its agent was started again")  # and begins anew
        self._since[host], reading, version = told
        if host == self._chain.source:
            self._version = version
        found: HostReading = reading
        return found

    def _send_errands(self, watch: Watch) -> None:
        """Tell every host which ways it is to probe: those that may be taken, from the near end of each hop."""
        assert self._standing is not None
        steering = self._config.steering
        ways: dict[str, dict[tuple[str, Way], None]] = {host: {} for host in self._hosts()}
        used: dict[str, set[tuple[str, Way]]] = {host: set() for host in self._hosts()}
        candidates = watch.candidates()
        path = self._standing.path
        for hop, (near, far) in enumerate(hops_of(self._chain)):
            there, back = path.forward[hop], tuple(reversed(path.back[hop]))
            mirrored = [tuple(reversed(way)) for way in candidates.get((far, near), ())]
            for way in (there, back, *candidates.get((near, far), ()), *mirrored):
                ways[near][far, way] = None
            used[near] |= {(far, there), (far, back)}
        for host in self._hosts():
            errand = Errand(
                self._chain.number,
                tuple(ways[host]),
                tuple(sorted(used[host])),
                steering.sample_ms / 1e3,
                steering.dead_after,
            )
            self._agents.call("watch", errand, hosts=[host])


def _links_of(watch: Watch) -> set[tuple[str, str, bool]]:
    """Host, router and state of every link."""
    return {
        (reading.host, router, link.up)
        for reading in watch.readings.values()
        for link in reading.links
        for router in link.routers
    }
