"""What all rivals are given: the job, its hosts and weights, and one actor for each stage."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
import torch
from torch import nn

from msl.actors.cluster import Session
from msl.bench.calls import Actors, answer
from msl.config import Config
from msl.pipeline.build import build_model, cut_model
from msl.pipeline.runtime import set_threads
from msl.pipeline.stage import StageState
from msl.plan import Member, Plan

Inputs = torch.Tensor | tuple[torch.Tensor, ...]
"""Of the model, the samples in dimension 0."""


@dataclass(frozen=True)
class Contest:
    """What all rivals have in common."""

    config: Config
    plan: Plan
    session: Session
    weights: Any
    """Reference to the unsplit model's `StageState` in Ray's store."""
    threads: int
    """Threads of torch of each stage."""

    @classmethod
    def of(cls, config: Config, plan: Plan, session: Session, state: StageState, threads: int) -> Self:
        """The contest of a job that begins with this state; puts it into Ray's store."""
        return cls(config, plan, session, ray.put(state), threads)

    @property
    def stages(self) -> tuple[Member, ...]:
        """The members that compute, in order; each stage's host is theirs."""
        return tuple(member for member in self.plan.members if member.place.stage is not None)


@dataclass(frozen=True)
class Seat:
    """What a stage's actor must know to build it."""

    import_folder: str
    """Folder in which the job's factories may lie."""
    config: Config
    plan: Plan
    stage: int
    stages: int
    threads: int
    address: str
    """Of its host, in the network that the fabric uses."""

    @property
    def is_first(self) -> bool:
        """Whether the inputs enter here."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether the loss is computed here."""
        return self.stage == self.stages - 1

    def modules(self, state: StageState) -> list[nn.Module]:
        """All stages of the model with these weights: the chain's own cut."""
        if self.import_folder not in sys.path:
            sys.path.insert(0, self.import_folder)
        set_threads(self.threads)
        model = build_model(self.config)
        model.load_state_dict(dict(state.weights))
        return cut_model(self.config, self.plan, model)


class Rival(ABC):
    """Something that runs until it is closed."""

    @abstractmethod
    def close(self) -> None:
        """End it, within a deadline, whatever state it is in."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StageActors:
    """An actor on the host of each stage.

    Args:
        contest: what they are to run.
        actor: class of the actors, made with a `Seat` and the weights.
        name: of the rival, for error messages.

    Raises:
        MslError: a stage cannot be built, or was not within `timeouts.start_s`.
    """

    def __init__(self, contest: Contest, actor: Any, name: str) -> None:
        self._name = name
        self._places = [member.place for member in contest.stages]
        self._actors = Actors()
        self.handles: list[Any] = []
        config, plan, stages = contest.config, contest.plan, len(self._places)
        for index, place in enumerate(self._places):
            node = contest.session.nodes[place.host]
            seat = Seat(str(Path.cwd()), config, plan, index, stages, contest.threads, node.address)
            self.handles.append(self._actors.start(actor, node, seat, contest.weights))
        try:
            self.call_all("__ray_ready__", config.timeouts.start_s)
        except BaseException:
            self.kill()
            raise

    def call(self, index: int, method: str, timeout_s: float, *arguments: Any) -> Any:
        """What a stage's method returns."""
        return answer(getattr(self.handles[index], method).remote(*arguments), self._where(index), timeout_s)

    def call_all(self, method: str, timeout_s: float, *arguments: Any) -> list[Any]:
        """What a method returns, called on all stages at once."""
        asked = [getattr(handle, method).remote(*arguments) for handle in self.handles]
        return [answer(reference, self._where(index), timeout_s) for index, reference in enumerate(asked)]

    def kill(self) -> None:
        """End them, whatever they do."""
        self._actors.kill()

    def _where(self, index: int) -> str:
        return f"{self._name}, stage {index} on host {self._places[index].host}"
