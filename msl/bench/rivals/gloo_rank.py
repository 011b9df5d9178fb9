"""One process of a torch pipeline: a stage of the model, its part of the schedule, and its end of gloo."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import IPv6Address, ip_address
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from msl.bench.rivals.contest import Seat
from msl.pipeline.batches import Batch, training_batches
from msl.pipeline.build import as_inputs, build_data, build_loss, build_optimizer, build_schedule
from msl.pipeline.exchange import measure
from msl.pipeline.randomness import Position, seed_dropout
from msl.pipeline.runtime import set_threads
from msl.pipeline.source import Tally
from msl.pipeline.stage import StageState

Order = Literal["1f1b", "gpipe"]
_SCHEDULES = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}
_BACKEND = "gloo_at_address"


class _Counting(nn.Module):
    """A stage that counts the micro-batches of a step, by which dropout is seeded."""

    def __init__(self, module: nn.Module, seed: int) -> None:
        super().__init__()
        self.position = Position()
        seed_dropout(module, seed, self.position)
        self.inner = module

    def forward(self, *inputs: torch.Tensor) -> Any:
        self.position.micro_batch += 1
        return self.inner(*inputs)

    def begin(self, step: int) -> None:
        """The next micro-batch is the first one of a step."""
        self.position.step, self.position.micro_batch = step, -1


class _Loss:
    """The loss of a micro-batch by its share of the step, as the sink of a chain scales it."""

    def __init__(self, loss: nn.Module, batch_samples: int) -> None:
        self._loss = loss
        self._batch_samples = batch_samples
        self.tally = Tally()

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = self._loss(output, target)
        self.tally.add(measure(loss, output, target))
        scaled: torch.Tensor = loss * (len(target) / self._batch_samples)
        return scaled


class GlooRank:
    """A rank of the pipeline.

    Args:
        seat: which one.
        state: of the unsplit model.
    """

    def __init__(self, seat: Seat, state: StageState) -> None:
        config = seat.config
        modules = seat.modules(state)
        train = config.train
        self._seat = seat
        self._shapes = _shapes(modules, seat)
        self._module = _Counting(modules[seat.stage].train(), config.seed)
        parameters = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        self._optimizer = build_optimizer(config, parameters) if parameters else None
        self._rates = build_schedule(config, self._optimizer, seat.plan.train_samples) if self._optimizer else None
        self._data = build_data(config).train if seat.is_first or seat.is_last else None
        self._loss = _Loss(build_loss(config), train.batch_size)

    def free_port(self) -> int:
        """A port of this host that nothing listens at."""
        with socket.create_server((self._seat.address, 0), family=_family(self._seat.address)) as listening:
            return int(listening.getsockname()[1])

    def join(self, first: str, order: Order, timeout_s: float) -> None:
        """Join the others, who meet at the URL `first`; a wait for one of them ends after so many seconds."""
        seat = self._seat
        # By itself gloo takes an interface's first address: neither the one of several hosts in a namespace, nor the
        # IPv6 address of a host that has IPv4 ones too.
        dist.Backend.register_backend(_BACKEND, _gloo_at(seat.address), devices=["cpu"])
        timeout = timedelta(seconds=timeout_s)
        dist.init_process_group(_BACKEND, init_method=first, timeout=timeout, world_size=seat.stages, rank=seat.stage)
        stage = PipelineStage(
            self._module,
            seat.stage,
            seat.stages,
            torch.device("cpu"),
            input_args=self._shapes[seat.stage],
            output_args=self._shapes[seat.stage + 1],
        )
        train = seat.config.train
        self._schedule = _SCHEDULES[order](
            stage, train.batch_size // train.micro_batch, loss_fn=self._loss, scale_grads=False
        )

    def train_steps(self, epoch: int, first_step: int, count: int) -> list[float]:
        """Train the first steps of an epoch; the first rank returns their seconds, the last one their losses."""
        set_threads(self._seat.threads)
        batches = self._batches(epoch)
        result: list[float] = []
        for step in range(first_step, first_step + count):
            begin = time.perf_counter()
            loss = self._train_step(next(batches, None), step)
            if self._seat.is_first:
                result.append(time.perf_counter() - begin)
            elif self._seat.is_last:
                result.append(loss)
        return result

    def leave(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _batches(self, epoch: int) -> Iterator[Batch]:
        if self._data is None:
            return iter(())
        config = self._seat.config
        train = config.train
        return training_batches(self._data, train.batch_size, train.micro_batch, config.seed, epoch)

    def _train_step(self, batch: Batch | None, step: int) -> float:
        self._module.begin(step)
        self._loss.tally = Tally()
        pieces = batch.micro_batches if batch is not None else ()
        inputs: list[torch.Tensor] = []
        if self._seat.is_first:
            inputs = [torch.cat(parts) for parts in zip(*(piece.inputs for piece in pieces), strict=True)]
        target = torch.cat([piece.target for piece in pieces]) if self._seat.is_last else None
        self._schedule.step(*inputs, target=target, return_outputs=False)
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        wanted = self._seat.config.train.schedule
        if self._rates is not None and wanted is not None and wanted.every == "step":
            self._rates.step()
        return self._loss.tally.loss


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if isinstance(ip_address(address), IPv6Address) else socket.AF_INET


def _gloo_at(address: str) -> Any:
    """Makes gloo's end at one address of this host."""

    def make(store: Any, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroupGloo:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
        options._timeout = timeout
        return dist.ProcessGroupGloo(store, rank, size, options)

    return make


def _shapes(modules: list[nn.Module], seat: Seat) -> list[tuple[torch.Tensor, ...]]:
    """What enters each stage, and what leaves the last one: tensors whose contents mean nothing.

    Given them, torch does not run the model in train mode to find out, which would change its running statistics.
    """
    samples = seat.config.train.micro_batch
    specs = seat.plan.inputs
    values = tuple(torch.zeros((samples, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in specs)
    found = [values]
    for module in modules:
        outputs = as_inputs(module.eval()(*values))
        values = tuple(torch.empty_like(t).requires_grad_(t.requires_grad) for t in outputs)
        found.append(values)
    return found
