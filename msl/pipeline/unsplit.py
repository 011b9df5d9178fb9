"""The unsplit model trained on the same micro-batches: what a split run must equal bit for bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from msl.pipeline.batches import Batch
from msl.pipeline.exchange import measure
from msl.pipeline.randomness import Position, seed_dropout
from msl.pipeline.source import Tally


class UnsplitTrainer:
    """Plain torch training in one process: forward, backward, gradient accumulation, step."""

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler | None = None,
        every: str = "epoch",
        seed: int = 0,
    ) -> None:
        self.model = model
        self._loss = loss
        self._optimizer = optimizer
        self._schedule = schedule
        self._every = every
        self._position = Position()
        seed_dropout(model, seed, self._position)

    def train_step(self, batch: Batch, step: int) -> Tally:
        """One optimizer step over a batch's micro-batches."""
        self.model.train()
        tally = Tally()
        for index, micro_batch in enumerate(batch.micro_batches):
            self._position.step, self._position.micro_batch = step, index
            output = self.model(*micro_batch.inputs)
            loss = self._loss(output, micro_batch.target)
            (loss * (len(micro_batch.target) / batch.samples)).backward()
            tally.add(measure(loss, output, micro_batch.target))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._schedule is not None and self._every == "step":
            self._schedule.step()
        return tally

    def train_epoch(self, batches: Iterable[Batch], first_step: int) -> list[float]:
        """One epoch; returns the loss of each step."""
        losses = [self.train_step(batch, step).loss for step, batch in enumerate(batches, first_step)]
        if self._schedule is not None and self._every == "epoch":
            self._schedule.step()
        return losses

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[Batch]) -> Tally:
        """Loss and accuracy in eval mode."""
        self.model.eval()
        tally = Tally()
        for batch in batches:
            for micro_batch in batch.micro_batches:
                output = self.model(*micro_batch.inputs)
                tally.add(measure(self._loss(output, micro_batch.target), output, micro_batch.target))
        return tally
