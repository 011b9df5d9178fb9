"""Inference by plain Ray calls: each stage an actor, and each result passed on as a reference."""

from __future__ import annotations

from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError

from msl.bench.calls import answer
from msl.bench.rivals.arrays import Array, accept_received, as_arrays, as_tensors
from msl.bench.rivals.contest import Contest, Inputs, Rival, Seat, StageActors
from msl.errors import ClusterError
from msl.pipeline.build import as_inputs
from msl.pipeline.runtime import set_threads
from msl.pipeline.stage import StageState


@ray.remote
class InferenceStage:
    """A stage in eval mode.

    Args:
        seat: which one.
        state: of the unsplit model.
    """

    def __init__(self, seat: Seat, state: StageState) -> None:
        self._threads = seat.threads
        self._module = seat.modules(state)[seat.stage].eval()
        accept_received()

    @ray.method(enable_task_events=False)  # what Ray records of each call for its dashboard
    def infer(self, arrays: list[Array]) -> list[Array]:
        """Forward pass."""
        set_threads(self._threads)  # a compiled graph calls this in a thread of its own
        with torch.inference_mode():
            return as_arrays(as_inputs(self._module(*as_tensors(arrays))))


class RayCalls(Rival):
    """The stages as Ray actors that are called one after the other.

    The driver submits the calls of all stages at once, each with the reference to the result before it, and waits for
    the last one only: activations go from host to host (through the driver only below 100 kB, where Ray puts results
    into the answers themselves). They are numpy arrays; see `arrays.py`.

    Args:
        contest: what is run, and where.

    Raises:
        MslError: an actor could not be started.
    """

    def __init__(self, contest: Contest) -> None:
        self._step_s = contest.config.timeouts.step_s
        self._stages = StageActors(contest, InferenceStage, "Ray calls")

    def infer(self, inputs: Inputs) -> torch.Tensor:
        """The model's output for a batch.

        Raises:
            MslError: a stage failed, or there was no answer within `timeouts.step_s`.
        """
        passed: Any = as_arrays(as_inputs(inputs))
        for stage in self._stages.handles:
            passed = stage.infer.remote(passed)
        try:
            arrays = ray.get(passed, timeout=self._step_s)
        except GetTimeoutError as error:
            raise ClusterError(f"Ray calls: no answer within {self._step_s:g} s") from error
        except RayError:
            arrays = answer(passed, "Ray calls", self._step_s)  # raises the same in the project's own words
        return torch.tensor(arrays[0])  # a copy: the array lies in Ray's store

    def close(self) -> None:
        """End the actors."""
        self._stages.kill()
