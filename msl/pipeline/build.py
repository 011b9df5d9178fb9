"""Makes the objects of a job from its configuration: model, data, loss, stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from msl.config import Config
from msl.data import Splits
from msl.errors import ConfigError
from msl.pipeline.batches import size, steps_per_epoch
from msl.pipeline.factory import make
from msl.pipeline.split import split
from msl.pipeline.stage import Stage
from msl.plan import Plan

_EXAMPLE_SAMPLES = 2
"""Samples that a model is traced with: more than one, so that a dimension of size one cannot be mistaken."""


def build_model(config: Config) -> nn.Module:
    """The unsplit model with its initial weights, which depend on the seed alone."""
    torch.manual_seed(config.seed)
    model = make("model", config.model)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.factory: {config.model.factory} returned a {type(model).__name__}, not an nn.Module")
    return model


def build_data(config: Config) -> Splits:
    """The data set."""
    splits = make("data", config.data)
    if not isinstance(splits, Splits):
        raise ConfigError(
            f"data.factory: {config.data.factory} returned a {type(splits).__name__}; it must return msl.data.Splits"
        )
    return splits


def build_loss(config: Config) -> nn.Module:
    """The loss module."""
    loss = make("train.loss", config.train.loss)
    if not isinstance(loss, nn.Module):
        raise ConfigError(f"train.loss.factory: {config.train.loss.factory} is not an nn.Module")
    return loss


def build_optimizer(config: Config, parameters: list[nn.Parameter]) -> Optimizer:
    """An optimizer over some of the model's parameters."""
    optimizer = make("train.optimizer", config.train.optimizer, parameters)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"train.optimizer.factory: {config.train.optimizer.factory} is not a torch optimizer")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError("train.optimizer: LBFGS evaluates the model within a step; a chain cannot do that")
    return optimizer


def build_schedule(config: Config, optimizer: Optimizer, train_samples: int) -> LRScheduler | None:
    """The learning-rate schedule over an optimizer, or None."""
    wanted = config.train.schedule
    if wanted is None:
        return None
    per_epoch = steps_per_epoch(train_samples, config.train.batch_size)
    known = {
        "total_steps": per_epoch * config.train.epochs,
        "steps_per_epoch": per_epoch,
        "epochs": config.train.epochs,
    }
    schedule = make("train.schedule", wanted, optimizer, substitute=known)
    if isinstance(schedule, ReduceLROnPlateau) or not isinstance(schedule, LRScheduler):
        raise ConfigError(
            f"train.schedule.factory: {wanted.factory} is not a schedule of torch.optim.lr_scheduler that depends on"
            " the number of steps alone"
        )
    return schedule


def build_stage(config: Config, module: nn.Module, train_samples: int) -> Stage:
    """A stage of the model with its own optimizer and schedule."""

    def make_schedule(optimizer: Optimizer) -> LRScheduler:
        schedule = build_schedule(config, optimizer, train_samples)
        assert schedule is not None
        return schedule

    return Stage(
        module,
        lambda parameters: build_optimizer(config, parameters),
        make_schedule if config.train.schedule else None,
        config.train.schedule.every if config.train.schedule else "epoch",
        config.seed,
    )


def cut_model(config: Config, plan: Plan, model: nn.Module) -> list[nn.Module]:
    """The stages of a model; needs no data."""
    example = tuple(
        torch.zeros((_EXAMPLE_SAMPLES, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in plan.inputs
    )
    return split(model, plan.cut, example, config.split.leaf_modules)


def check_job(config: Config, data: Splits) -> None:
    """Make everything of a job that a member will make, so that what cannot be made is told before a start."""
    build_loss(config)
    parameter = nn.Parameter(torch.zeros(1))
    build_schedule(config, build_optimizer(config, [parameter]), size(data.train))
    size(data.test)


def as_inputs(value: Any) -> tuple[torch.Tensor, ...]:
    """What enters a stage or leaves it, as a tuple."""
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)
