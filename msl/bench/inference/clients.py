"""Many clients of a service at once: a few processes on the source's host, each with several connections."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import ray

from msl.actors.cluster import Node
from msl.bench.calls import Actors, answer
from msl.bench.inference.sides import connect
from msl.client import Client
from msl.config import Config
from msl.errors import StageError
from msl.net.arrays import Array
from msl.net.fabric import Endpoint

_PROCESSES = 4
_CALL_S = 60.0


class Question(NamedTuple):
    """A request, and the answer that it must have."""

    inputs: tuple[Array, ...]
    output: Array


class Answered(NamedTuple):
    """What some clients got in a while."""

    latencies_ms: list[float]
    """Of each request, of all clients."""
    seconds: float
    """Until the last answer."""


@ray.remote
class ClientActor:
    """A process with some connections; each has a thread that asks again as soon as it has its answer."""

    def measure(
        self, endpoint: Endpoint, config: Config, connections: int, seconds: float, question: Question
    ) -> Answered:
        """Open the connections, and ask for a while.

        Raises:
            StageError: an answer was not the unsplit model's.
            MslError: a request failed.
        """
        latencies_ms: list[float] = []
        faults: list[BaseException] = []

        def ask(client: Client) -> None:
            own = []
            try:
                while time.perf_counter() < end:
                    start = time.perf_counter()
                    output = client.predict(*question.inputs)
                    own.append(1e3 * (time.perf_counter() - start))
                    if not np.array_equal(output, question.output):
                        raise StageError("an output is not the unsplit model's to the last bit")
            except BaseException as error:
                faults.append(error)
            latencies_ms.extend(own)

        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(endpoint, config)) for _ in range(connections)]
            threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
            begin = time.perf_counter()
            end = begin + seconds
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.perf_counter() - begin
        if faults:
            raise faults[0]
        return Answered(latencies_ms, took)


class Crowd:
    """The clients' processes.

    Args:
        started: starts them.
        node: the source's host.
        config: the job.
    """

    def __init__(self, started: Actors, node: Node, config: Config) -> None:
        self._start_s = config.timeouts.start_s
        self._actors = [started.start(ClientActor, node) for _ in range(_PROCESSES)]
        for actor in self._actors:
            answer(actor.__ray_ready__.remote(), "a client's process", self._start_s)

    def measure(self, endpoint: Endpoint, config: Config, clients: int, seconds: float, question: Question) -> Answered:
        """Let so many clients ask for a while."""
        asked = [
            actor.measure.remote(endpoint, config, connections, seconds, question)
            for actor, connections in zip(self._actors, _shares(clients), strict=False)
        ]
        told: list[Any] = [answer(it, f"{clients} clients", seconds + _CALL_S) for it in asked]
        return Answered([latency for part in told for latency in part.latencies_ms], max(part.seconds for part in told))


def _shares(clients: int) -> Iterator[int]:
    """Connections of each process."""
    processes = min(clients, _PROCESSES)
    each, more = divmod(clients, processes)
    yield from (each + (index < more) for index in range(processes))
