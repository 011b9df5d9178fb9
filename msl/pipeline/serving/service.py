"""One hop of a service, running: two threads that take turns at waiting for the network and at computing.

Whoever finds a complete request computes it at once and sends on what comes out, while the other thread goes on
waiting: no request is handed from thread to thread. (Leader and followers: Schmidt et al., Pattern-Oriented Software
Architecture 2, 2000.) Only one thread computes at a time, so that requests stay in order.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence

import psutil

from msl.errors import MslError, StageError
from msl.net.fabric import Fabric
from msl.net.trace import now_ns
from msl.pipeline.runtime import set_threads
from msl.pipeline.serving.compute import Inference, Outputs
from msl.pipeline.serving.counters import ServiceReport
from msl.pipeline.serving.dialogue import Dialogue
from msl.pipeline.serving.poller import Poller
from msl.pipeline.serving.request import Request
from msl.pipeline.serving.rules import HopRules
from msl.pipeline.serving.session import Session
from msl.pipeline.serving.turns import Held, Turns

log = logging.getLogger(__name__)

_TICK_S = 0.25
_NAP_S = 0.0005
_THREADS = 2
_TAKEN_AT_ONCE = 16
_QUICK_NS = 200_000
_QUICK_ONES = 16
"""So many computations in a row that took less than that, and whoever waits for the network computes as well."""

Compute = Callable[[Sequence[Request]], Sequence[Outputs | MslError]]


class Service:
    """Serves a stage to whoever connects.

    Args:
        rules: what the hop knows of itself and its neighbours.
        inference: the stage; without one, requests wait until somebody calls `work`.
        fabric: makes the sockets onward; None at the last hop.
        listener: where the previous hop connects; owned from here on.
        turns: whose request is computed next.
        threads: torch's threads within an operation.
    """

    def __init__(
        self,
        rules: HopRules,
        inference: Inference | None,
        fabric: Fabric | None,
        listener: socket.socket,
        turns: Turns,
        threads: int = 1,
    ) -> None:
        self._rules = rules
        self._inference = inference
        self._turns = turns
        self._listener = listener
        self._num_threads = threads
        self._wake, self._woken = socket.socketpair()
        self._poller = Poller(listener, self._woken)
        self._dialogue = self._poller.dialogue = Dialogue(rules, fabric, turns, self._poller)
        self._lock = threading.Lock()
        """Guards all but the next three. It is held while bytes are moved, not while one waits or computes."""
        self._roles = threading.Condition()
        self._leading = False
        self._computing = False
        self._quick_ones = 0
        self._closed = threading.Event()
        self._fault: str | None = None
        listener.setblocking(False)
        self._threads = [
            threading.Thread(target=self._run, name=f"msl-serve-{i}", daemon=True) for i in range(_THREADS)
        ]

    def start(self) -> None:
        """Start to serve."""
        for thread in self._threads:
            thread.start()

    def report(self) -> ServiceReport:
        """How the hop is."""
        rss_bytes = psutil.Process().memory_info().rss
        with self._lock:
            dialogue = self._dialogue
            return ServiceReport(
                self._rules.name,
                self._rules.host,
                self._rules.hop,
                time.monotonic(),
                len(dialogue.sessions),
                len(self._turns),
                dialogue.requests.lent_bytes + dialogue.answers.lent_bytes,
                dialogue.requests.allocated_bytes + dialogue.answers.allocated_bytes,
                rss_bytes,
                copy.deepcopy(dialogue.counters),
                self._fault,
            )

    def work(self, compute: Compute, step: int) -> int:
        """Compute what waits, in the calling thread; for a service without a stage of its own.

        Args:
            compute: gives each request's outputs, or why there are none.
            step: optimizer steps that the weights have behind them.

        Returns:
            How many requests that were: a bounded number, so that who calls gets on with other things.
        """
        requests: list[Request] = []
        with self._lock:
            while len(requests) < _TAKEN_AT_ONCE and self._turns.due_in_ns(now_ns()) == 0:
                requests += self._turns.take()
            self._dialogue.step = step
        if not requests:
            return 0
        begin_ns = now_ns()
        for request in requests:
            request.taken_ns = begin_ns
        outputs: Sequence[Outputs | MslError] = [StageError("what computes has failed")] * len(requests)
        try:
            outputs = compute(requests)
        finally:
            with self._lock:
                self._hand_over(requests, outputs)
        return len(requests)

    def wait(self, timeout_s: float) -> str | None:
        """Wait until the hop has stopped serving, at most `timeout_s`; returns why, if it has failed."""
        self._closed.wait(timeout_s)
        return self._fault

    def close(self) -> None:
        """Stop: close all connections, and end the threads."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        with self._roles:
            self._roles.notify_all()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout=5.0)
        with self._lock:
            self._turn_away()
            for sock in (self._wake, self._woken):
                sock.close()
            self._poller.close()

    def _turn_away(self) -> None:
        for session in list(self._dialogue.sessions):
            self._dialogue.close(session)
        self._listener.close()

    # -- the two roles

    def _run(self) -> None:
        set_threads(self._num_threads)
        try:
            while not self._closed.is_set():
                with self._roles:
                    while self._leading and not self._closed.is_set():
                        self._roles.wait()
                    self._leading = True
                try:
                    computes = self._lead()
                finally:
                    with self._roles:
                        self._leading = False
                        self._roles.notify()
                if computes:
                    self._compute()
        except Exception as error:
            log.exception("hop %d stops serving", self._rules.hop)
            self._fault = f"{type(error).__name__}: {error}"
            self._closed.set()
            with self._roles:
                self._roles.notify_all()
            with self._lock, contextlib.suppress(Exception):
                self._turn_away()

    def _lead(self) -> bool:
        """Wait for the network and answer it, until something waits that another one is to compute; False at the end.

        Where computations are quicker than a change of threads, it computes by itself.
        """
        checked_s = time.monotonic()
        wait_s = _TICK_S
        while not self._closed.is_set():
            events = self._poller.wait(wait_s)
            wait_s = _TICK_S
            requests: list[Request] = []
            with self._lock:
                self._poller.take(events)
                if time.monotonic() - checked_s > _TICK_S:
                    checked_s = time.monotonic()
                    self._poller.look_around()
                if not self._computing and self._inference is not None:
                    due_ns = self._due_in_ns()
                    if due_ns == 0 and self._quick_ones >= _QUICK_ONES:
                        requests = self._take()
                    elif due_ns is not None:
                        self._computing = True
                        return True
            if requests and self._infer(requests) is not None:
                wait_s = 0.0  # more waits: no event will tell of it
        return False

    def _compute(self) -> None:
        """Compute until nothing waits."""
        while not self._closed.is_set():
            with self._lock:
                due_ns = self._due_in_ns()
                if due_ns is None:
                    self._computing = False
                    return
                requests = [] if due_ns else self._take()
            if requests:
                self._infer(requests)
            else:
                time.sleep(min(_NAP_S, due_ns / 1e9))

    def _take(self) -> list[Request]:
        requests = self._turns.take(self._held())
        taken_ns = now_ns()
        for request in requests:
            request.taken_ns = taken_ns
            self._dialogue.counters.queue.add(taken_ns - request.received_ns)
        return requests

    def _infer(self, requests: Sequence[Request]) -> int | None:
        """Compute and send on what comes out; tells when more is due, as `Turns.due_in_ns`."""
        assert self._inference is not None
        outputs = self._inference.compute(requests)
        with self._lock:
            quick = now_ns() - requests[0].taken_ns < _QUICK_NS
            self._quick_ones = self._quick_ones + 1 if quick else 0
            self._hand_over(requests, outputs)
            return self._due_in_ns()

    def _due_in_ns(self) -> int | None:
        return self._turns.due_in_ns(now_ns(), self._held())

    def _held(self) -> Held | None:
        """With the memory full of what peers do not take, those sessions have no turn whose peers do not."""
        full = self._dialogue.backlog.num_bytes > self._rules.memory_bytes
        return _is_sending if full else None

    def _hand_over(self, requests: Sequence[Request], outputs: Sequence[Outputs | MslError]) -> None:
        computed_ns = now_ns()
        counters = self._dialogue.counters
        counters.batches += 1
        counters.compute.add(computed_ns - requests[0].taken_ns)
        samples = sum(request.samples for request in requests)
        for request, output in zip(requests, outputs, strict=True):
            request.computed_ns, request.computed_samples = computed_ns, samples
            self._dialogue.deliver(request, output)
            self._poller.settle(request.session)
        self._poller.feed()


def _is_sending(session: Session) -> bool:
    return session.sending
