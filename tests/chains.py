"""A whole chain in one process: members in threads, over real TCP on loopback."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from msl.actors.member import ChainMember
from msl.config import Config
from msl.data import Splits
from msl.pipeline.balance import profile
from msl.pipeline.batches import evaluation_batches, sample_inputs, training_batches
from msl.pipeline.build import build_data, build_loss, build_model, build_optimizer, build_schedule
from msl.pipeline.stage import StageState
from msl.pipeline.unsplit import UnsplitTrainer
from msl.plan import Plan, build, lay_out


def make_config(**changes: object) -> Config:
    """A small job: a quick model, few images."""
    base: dict[str, object] = {
        "model": {"factory": "msl.models.resnet:resnet18", "args": {"num_classes": 10, "in_channels": 1}},
        "data": {
            "factory": "msl.data.synthetic:random_images",
            "args": {"num_train": 22, "num_test": 10, "shape": [1, 32, 32], "num_classes": 10, "seed": 3},
        },
        "split": {"cut": ["layer2", "layer3", "layer4"]},
        "train": {"epochs": 2, "batch_size": 8, "micro_batch": 3},
        "timeouts": {"connect_s": 10, "silence_s": 10, "step_s": 30, "stop_s": 5},
    }
    return Config.model_validate({**base, **changes})


def make_plan(config: Config, threads: int = 1) -> Plan:
    """Its plan, with so many threads for each member."""
    data = build_data(config)
    hosts, places = lay_out(config)
    stages = sum(place.stage is not None for place in places)
    measured = profile(
        build_model(config), config.split.cut, stages, sample_inputs(data.train, 4), config.split.leaf_modules
    )
    return build(config, measured, dict.fromkeys(hosts, threads), len(data.train))  # type: ignore[arg-type]


@contextmanager
def open_chain(
    config: Config, plan: Plan | None = None, state: StageState | None = None
) -> Iterator[list[ChainMember]]:
    """All members of a job, connected, with a state to begin with; closed in the end."""
    plan = plan or make_plan(config)
    job = secrets.token_hex(16)
    members = [ChainMember(config, plan, hop, job, "127.0.0.1") for hop in range(len(plan.members))]
    try:
        ends = [member.listen() for member in members]
        for member in members if state else ():
            member.load(state)
        for hop in range(len(members) - 1, -1, -1):
            members[hop].open(ends[hop + 1] if hop + 1 < len(ends) else None)
        yield members
    finally:
        for member in members:
            member.close()


def steps_of(member: ChainMember) -> list[float]:
    """The losses of the steps since the last call."""
    return [record.loss for record in member.status().records if record.loss is not None]


def train_split(
    config: Config, plan: Plan | None = None, threads: int = 1
) -> tuple[list[float], StageState, list[float]]:
    """Train over a chain: losses of the steps, the merged final state, test loss after each epoch."""
    losses: list[float] = []
    tests: list[float] = []
    with open_chain(config, plan or make_plan(config, threads)) as members:
        source = members[0]
        step = 0
        for epoch in range(config.train.epochs):
            source.train_epoch(epoch, step)
            epoch_losses = steps_of(source)
            losses += epoch_losses
            step += len(epoch_losses)
            tests.append(source.evaluate(step).loss)
        states = [state for member in members if (state := member.state()) is not None]
        source.end()
        assert all(member.wait(5.0) is None for member in members)
    return losses, merge(states), tests


def merge(states: list[StageState]) -> StageState:
    """The stages' states as one."""
    weights = {name: tensor for state in states for name, tensor in state.weights.items()}
    optimizer = {name: kept for state in states for name, kept in state.optimizer.items()}
    assert len(weights) == sum(len(state.weights) for state in states)
    return StageState(weights, optimizer, states[-1].group, states[-1].schedule)


def train_unsplit(config: Config, threads: int = 1) -> tuple[list[float], dict[str, torch.Tensor], list[float]]:
    """The same job on the unsplit model."""
    torch.set_num_threads(threads)
    data: Splits = build_data(config)
    model = build_model(config)
    train = config.train
    optimizer = build_optimizer(config, list(model.parameters()))
    trainer = UnsplitTrainer(
        model,
        build_loss(config),
        optimizer,
        build_schedule(config, optimizer, len(data.train)),  # type: ignore[arg-type]
        train.schedule.every if train.schedule else "epoch",
        config.seed,
    )
    losses: list[float] = []
    tests: list[float] = []
    for epoch in range(train.epochs):
        batches = training_batches(data.train, train.batch_size, train.micro_batch, config.seed, epoch)
        losses += trainer.train_epoch(batches, len(losses))
        tests.append(trainer.evaluate(evaluation_batches(data.test, train.eval_batch or train.batch_size)).loss)
    return losses, dict(model.state_dict()), tests
