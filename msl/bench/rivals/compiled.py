"""Inference by a Ray Compiled Graph: the same actors, with channels between them that are set up beforehand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from ray.dag import InputNode
from ray.exceptions import RayError

from msl.bench.rivals.arrays import as_arrays
from msl.bench.rivals.contest import Contest, Inputs, Rival, StageActors
from msl.bench.rivals.ray_calls import InferenceStage
from msl.errors import ClusterError, MslError
from msl.pipeline.build import as_inputs

_ROOM_BYTES = 65_536
"""In a channel besides the arrays."""
_TEARDOWN_S = 2.0


class CompiledGraph(Rival):
    """The stages as Ray actors in a compiled graph.

    Each actor waits in a loop for the channel from the one before. The channels lie in the hosts' object stores, and
    Ray copies what is written in one to the reader's host. They are made for the largest batch, so that none has to be
    replaced on the way, and for one batch at a time; neither changes the round trip measurably.

    Ray 2.60 waits in busy loops: one thread of each stage for its input and one for what it is to send on, as long as
    the graph lives. With fewer cores than these threads, which no setting stops, it is slower than plain Ray calls.
    Whatever else is measured must be measured while no graph is open.

    Args:
        contest: what is run, and where.
        samples: of the largest batch.

    Raises:
        MslError: an actor could not be started, or the graph not be compiled within `timeouts.start_s`.
    """

    def __init__(self, contest: Contest, samples: int) -> None:
        timeouts = contest.config.timeouts
        self._step_s, self._graph = timeouts.step_s, None
        self._stages = StageActors(contest, InferenceStage, "compiled graph")
        try:
            num_bytes = samples * _largest_bytes(contest) + _ROOM_BYTES
            self._graph = _within(timeouts.start_s, lambda: self._compile(num_bytes))
        except BaseException:
            self.close()
            raise

    def infer(self, inputs: Inputs) -> torch.Tensor:
        """The model's output for a batch.

        Raises:
            ClusterError: a stage failed, or there was no answer within `timeouts.step_s`.
        """
        assert self._graph is not None, "the graph is closed"
        try:
            arrays = self._graph.execute(as_arrays(as_inputs(inputs))).get(timeout=self._step_s)
        except RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ClusterError(f"compiled graph: {lines[-1].strip()}") from error
        return torch.tensor(arrays[0])  # a copy: the array lies in a channel, which the next batch is written to

    def close(self) -> None:
        """End the graph and the actors; a graph that does not end by itself ends with them."""
        graph, self._graph = self._graph, None
        ending = threading.Thread(target=graph.teardown, daemon=True) if graph is not None else None
        if ending is not None:
            ending.start()
            ending.join(_TEARDOWN_S)
        self._stages.kill()
        if ending is not None:
            ending.join(_TEARDOWN_S)

    def _compile(self, num_bytes: int) -> Any:
        with InputNode() as inputs:
            passed: Any = inputs
            for stage in self._stages.handles:
                passed = stage.infer.bind(passed)
        return passed.experimental_compile(
            _submit_timeout=self._step_s, _buffer_size_bytes=num_bytes, _max_inflight_executions=1
        )


def _largest_bytes(contest: Contest) -> int:
    """The most bytes per sample that cross a channel."""
    entering: int = sum(prod(spec.shape) * getattr(torch, spec.dtype).itemsize for spec in contest.plan.inputs)
    return max(entering, *(member.bytes_onward for member in contest.plan.members))


def _within(timeout_s: float, call: Callable[[], Any]) -> Any:
    """What a call returns that knows no deadline itself."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not results:
        raise ClusterError(f"compiled graph: was not compiled within {timeout_s:g} s")
    if isinstance(results[0], MslError):
        raise results[0]
    if isinstance(results[0], Exception):
        raise ClusterError(f"compiled graph: cannot be compiled: {results[0]}") from results[0]
    return results[0]
