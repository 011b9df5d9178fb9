"""Actors of a benchmark: each pinned to its host, and each call with a deadline."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from msl.actors.cluster import Node
from msl.errors import ClusterError, MslError

_TICK_S = 0.25


class Actors:
    """The actors that a benchmark has started."""

    def __init__(self) -> None:
        self._started: list[Any] = []

    def start(self, actor: Any, node: Node, *arguments: Any) -> Any:
        """Start an actor on a host."""
        affinity = NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False)
        handle = actor.options(num_cpus=0, max_restarts=0, scheduling_strategy=affinity).remote(*arguments)
        self._started.append(handle)
        return handle

    def kill(self) -> None:
        """End them, whatever they do."""
        for handle in self._started:
            with contextlib.suppress(RayError):
                ray.kill(handle)


@contextlib.contextmanager
def actors() -> Iterator[Actors]:
    """A benchmark's actors; gone in the end."""
    started = Actors()
    try:
        yield started
    finally:
        started.kill()


def answer(reference: Any, what: str, timeout_s: float) -> Any:
    """The result of a call.

    Args:
        reference: of the call.
        what: was asked, for error messages.
        timeout_s: deadline.

    Raises:
        MslError: what the actor raised, or that it is gone or gave no answer in time.
    """
    deadline = time.monotonic() + timeout_s
    # In short waits, between which a signal is heard.
    while not ray.wait([reference], timeout=_TICK_S)[0]:
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: no answer within {timeout_s:g} s")
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, MslError):
            raise type(error.cause)(f"{what}: {error.cause}") from error
        raise ClusterError(f"{what}: {_last_line(error.cause)}") from error
    except RayActorError as error:
        raise ClusterError(f"{what}: the actor died: {_last_line(error)}") from error
    except RayError as error:
        raise ClusterError(f"{what}: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
