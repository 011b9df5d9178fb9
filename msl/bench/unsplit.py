"""The unsplit model trained in an actor of its own: what a chain is compared with."""

from __future__ import annotations

import sys
from itertools import islice

import ray

from msl.config import Config
from msl.pipeline.batches import size, training_batches
from msl.pipeline.build import build_data, build_loss, build_model, build_optimizer, build_schedule
from msl.pipeline.runtime import set_threads
from msl.pipeline.unsplit import UnsplitTrainer


@ray.remote
class UnsplitActor:
    """Trains a job's unsplit model on the job's batches.

    Args:
        import_folder: folder in which the job's factories may lie.
        config: the job.
        threads: threads of torch.
    """

    def __init__(self, import_folder: str, config: Config, threads: int) -> None:
        if import_folder not in sys.path:
            sys.path.insert(0, import_folder)
        set_threads(threads)
        self._config = config
        self._threads = threads
        self._data = build_data(config).train
        model = build_model(config)
        optimizer = build_optimizer(config, list(model.parameters()))
        self._trainer = UnsplitTrainer(
            model,
            build_loss(config),
            optimizer,
            build_schedule(config, optimizer, size(self._data)),
            config.train.schedule.every if config.train.schedule else "epoch",
            config.seed,
        )

    def ready(self) -> None:
        """Answers once the model is built."""

    def train_steps(self, epoch: int, first_step: int, count: int) -> list[float]:
        """Train the first steps of an epoch without ending it; their losses."""
        set_threads(self._threads)
        train = self._config.train
        batches = training_batches(self._data, train.batch_size, train.micro_batch, self._config.seed, epoch)
        return [
            self._trainer.train_step(batch, step).loss for step, batch in enumerate(islice(batches, count), first_step)
        ]
