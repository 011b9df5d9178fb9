"""Inference by the unsplit model in the driver's own process."""

from __future__ import annotations

import torch

from msl.bench.rivals.contest import Inputs, Rival
from msl.config import Config
from msl.pipeline.build import as_inputs, build_model
from msl.pipeline.runtime import set_threads
from msl.pipeline.stage import StageState


class Unsplit(Rival):
    """The unsplit model.

    Args:
        config: the job.
        state: its weights.
        threads: threads of torch.
    """

    def __init__(self, config: Config, state: StageState, threads: int) -> None:
        self._threads = threads
        self._model = build_model(config).eval()
        self._model.load_state_dict(dict(state.weights))

    def infer(self, inputs: Inputs) -> torch.Tensor:
        """The model's output for a batch."""
        set_threads(self._threads)
        with torch.inference_mode():
            output: torch.Tensor = self._model(*as_inputs(inputs))
        return output

    def close(self) -> None:
        """Nothing runs."""
