"""A chain of Ray actors, each pinned to its host: started, watched, and ended."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from msl.actors.answers import answer, creation_error
from msl.actors.cluster import MEMBER_PREFIX, Session
from msl.actors.diagnosis import Obituary, diagnose, first_fault
from msl.actors.member import Identity, Report
from msl.actors.remote import MemberActor
from msl.config import Config
from msl.errors import MslError, StageError
from msl.net.fabric import Endpoint
from msl.pipeline.fault import Fault
from msl.pipeline.source import Tally
from msl.pipeline.stage import StageState
from msl.plan import Plan

_TICK_S = 0.25
_REPORT_EVERY_S = 0.5
_LAST_WORDS_S = 3.0
"""After a first sign of failure: time for the members to tell what they know."""
_HEADLESS_S = 0.5
"""The same where Ray itself has lost its head: who lives answers at once, and who is dead is never told."""
_NOTICE_S = 2.0
"""Time for the process that owns a raylet to notice that it is gone."""

Watcher = Callable[[Report], None]


class Chain:
    """The members of a job, running.

    Args:
        config: the job's configuration.
        plan: the job's plan.
        session: the cluster.
        watcher: given the members' reports while an epoch runs.
    """

    def __init__(self, config: Config, plan: Plan, session: Session, watcher: Watcher) -> None:
        self._config = config
        self._plan = plan
        self._session = session
        self._watch = watcher
        self._actors: list[Any] = []
        self._endings: dict[Any, int] = {}
        self._reports: dict[Any, int] = {}
        self._next_report = 0.0
        self.path: list[dict[str, Any]] = []
        """The hops that the sink's WELCOME passed, source first."""
        self.detail = ""
        """After a failure in the model's own code: its traceback."""

    def start(self, state: StageState) -> None:
        """Create the actors, give each its part of the state, and open the chain.

        Raises:
            MslError: what a member could not do, and on which host.
        """
        job = secrets.token_hex(16)
        for member in self._plan.members:
            node = self._session.nodes[member.place.host]
            affinity = NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False)
            options = MemberActor.options(  # type: ignore[attr-defined]
                num_cpus=0,
                max_concurrency=8,
                max_restarts=0,
                scheduling_strategy=affinity,
                name=f"{MEMBER_PREFIX}{job[:8]}-{member.place.name}",
            )
            self._actors.append(
                options.remote(str(Path.cwd()), self._config, self._plan, member.place.hop, job, node.address)
            )
        start_s = self._config.timeouts.start_s
        ends = self._call_all("listen", start_s)
        shared = ray.put(state)
        self._call_all("load", start_s, shared)
        for hop in range(len(self._actors) - 1, -1, -1):
            following = ends[hop + 1] if hop + 1 < len(ends) else None
            opened = self._get(self._actors[hop].open.remote(following), hop, start_s)
            self.path = opened or self.path
        self._endings = {actor.wait.remote(1e9): hop for hop, actor in enumerate(self._actors)}

    def identities(self) -> list[Identity]:
        """Where the members really run."""
        return self._call_all("identify", self._config.timeouts.start_s)

    def train_epoch(self, epoch: int, first_step: int) -> Tally:
        """Train one epoch; reports go to the watcher meanwhile."""
        tally: Tally = self._attend(self._actors[0].train_epoch.remote(epoch, first_step))
        return tally

    def train_steps(self, epoch: int, first_step: int, count: int) -> list[float]:
        """Train the first steps of an epoch without ending it; their losses. Reports go to the watcher meanwhile.

        All stages' optimizers have stepped when it returns.
        """
        losses: list[float] = self._attend(self._actors[0].train_steps.remote(epoch, first_step, count))
        last, timeout_s = first_step + count - 1, self._config.timeouts.step_s
        if not all(self._call_all("await_step", timeout_s + _LAST_WORDS_S, last, timeout_s)):
            raise self._failure(None)
        self._collect_reports()
        return losses

    def evaluate(self, step: int) -> Tally:
        """Loss and accuracy on the test set."""
        tally: Tally = self._attend(self._actors[0].evaluate.remote(step))
        return tally

    def serve(self, step: int) -> Endpoint:
        """Let clients ask the chain between its steps; returns where, on the source's host."""
        endpoint: Endpoint = self._get(self._actors[0].serve.remote(step), 0, self._config.timeouts.start_s)
        return endpoint

    def states(self) -> list[StageState]:
        """What each stage has learnt; only between epochs."""
        states = self._call_all("state", self._config.timeouts.start_s)
        return [state for state in states if state is not None]

    def end(self) -> None:
        """End the chain in order."""
        self._attend(self._actors[0].end.remote())

    def kill(self) -> None:
        """End the actors, whatever they do, and wait until they are gone."""
        if self._session.headless():
            return  # Ray can end nobody any more; the actors end with their raylets
        for actor in self._actors:
            with contextlib.suppress(RayError):
                ray.kill(actor)
        deadline = time.monotonic() + self._config.timeouts.stop_s
        for actor in self._actors:
            while time.monotonic() < deadline and self._lives(actor):
                time.sleep(0.05)
        self._actors = []

    def _lives(self, actor: Any) -> bool:
        try:
            ray.get(actor.identify.remote(), timeout=0.5)
        except RayActorError:
            return False
        except RayError:
            return True
        return True

    def _call_all(self, method: str, timeout_s: float, *arguments: Any) -> list[Any]:
        references = [getattr(actor, method).remote(*arguments) for actor in self._actors]
        deadline = time.monotonic() + timeout_s
        return [
            self._get(reference, hop, max(0.0, deadline - time.monotonic())) for hop, reference in enumerate(references)
        ]

    def _get(self, reference: Any, hop: int, timeout_s: float) -> Any:
        place = self._plan.members[hop].place
        where = f"host {place.host}, stage {place.name}"

        def gone(error: RayActorError) -> MslError:
            # If the chain was running: find out who it is.
            return self._failure(error) if self._endings else creation_error(error, where)

        return answer(reference, where, timeout_s, gone, " (timeouts.start_s)")

    def _attend(self, reference: Any) -> Any:
        """Wait for a call to the source while watching over all members."""
        while True:
            waiting = [reference, *self._endings, *self._reports]
            ready, _ = ray.wait(waiting, num_returns=1, timeout=_TICK_S)
            for done in ready:
                if done == reference:
                    try:
                        result = ray.get(reference)
                    except RayError as error:
                        raise self._failure(error) from error
                    self._collect_reports()
                    return result
                if done in self._reports:
                    self._take_report(done)
                else:
                    self._take_ending(done)
            self._ask_for_reports()
            if self._session.dead_hosts():
                raise self._failure(None)

    def _ask_for_reports(self) -> None:
        now = time.monotonic()
        if now < self._next_report or self._reports:
            return
        self._next_report = now + _REPORT_EVERY_S
        self._reports = {actor.status.remote(): hop for hop, actor in enumerate(self._actors)}

    def _take_report(self, reference: Any) -> None:
        del self._reports[reference]
        try:
            self._watch(ray.get(reference))
        except RayError as error:
            raise self._failure(error) from error

    def _collect_reports(self) -> None:
        """The rest of the reports, so that nothing of an epoch is missing when it is told."""
        for reference in list(self._reports):
            self._take_report(reference)
        for report in self._call_all("status", self._config.timeouts.start_s):
            self._watch(report)

    def _take_ending(self, reference: Any) -> None:
        self._endings.pop(reference)
        try:
            fault: Fault | None = ray.get(reference)
        except RayError as error:
            raise self._failure(error) from error
        if fault is not None:
            raise self._failure(None)

    def _failure(self, error: RayError | None) -> StageError:
        """Ask every member for its last words, and say in one line what happened."""
        asked = {actor.status.remote(): hop for hop, actor in enumerate(self._actors)}
        patience_s = _HEADLESS_S if self._session.headless() else _LAST_WORDS_S
        ray.wait(list(asked), num_returns=len(asked), timeout=patience_s)
        reports: dict[str, Report] = {}
        dead: list[Obituary] = []
        for reference, hop in asked.items():
            place = self._plan.members[hop].place
            try:
                reports[place.name] = ray.get(reference, timeout=0)
            except RayActorError as gone:
                dead.append(Obituary(place.host, place.name, _cause_of_death(gone)))
            except RayError:
                continue  # no answer in time: it is heard through its neighbours' faults
        # A raylet's death shows at once in its actors, and a moment later in the process that owns it.
        deadline = time.monotonic() + _NOTICE_S
        while dead and not self._session.dead_hosts() and time.monotonic() < deadline:
            time.sleep(0.1)
        places = [member.place for member in self._plan.members]
        dead_hosts = {
            host: [place.name for place in places if place.host == host] for host in self._session.dead_hosts()
        }
        fault = first_fault(reports)
        self.detail = fault.detail if fault else ""
        return StageError(diagnose(reports, dead, dead_hosts, error))


def _cause_of_death(error: RayActorError) -> str:
    text = str(error).lower()
    if "node" in text and ("died" in text or "dead" in text) and "raylet" in text:
        return "its raylet is gone"
    return "its process is gone"


@contextlib.contextmanager
def running(config: Config, plan: Plan, session: Session, state: StageState, watcher: Watcher) -> Iterator[Chain]:
    """A started chain; its actors are gone in the end."""
    chain = Chain(config, plan, session, watcher)
    try:
        chain.start(state)
        yield chain
    finally:
        chain.kill()
