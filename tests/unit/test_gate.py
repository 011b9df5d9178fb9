"""Clients that ask a chain while it trains."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
import torch

from msl.actors.gate import check_inputs
from msl.client import Client
from msl.errors import ConfigError, MslError
from msl.pipeline.batches import training_batches
from msl.pipeline.build import build_data, build_loss, build_model, build_optimizer
from msl.pipeline.checkpoint import initial_state
from msl.pipeline.unsplit import UnsplitTrainer
from tests.chains import make_config, make_plan, open_chain, steps_of


def test_answers_are_those_of_a_complete_step_and_do_not_change_the_training() -> None:
    config = make_config(name="gate", sr={"port": 17433})
    data = build_data(config)
    image = data.test[0][0][None]
    asked: list[torch.Tensor] = []
    with open_chain(config, state=initial_state(build_model(config))) as members:
        endpoint = members[0].serve(0)
        over = threading.Event()

        def ask() -> None:
            with suppress(MslError), Client((endpoint.address, endpoint.port), "gate", timeout_s=30) as client:
                while not over.is_set():  # the gate closes at the end, perhaps with a request waiting
                    asked.append(client.predict(image))

        asker = threading.Thread(target=ask)
        asker.start()
        try:
            members[0].train_epoch(0, 0)
            losses = steps_of(members[0])
        finally:
            over.set()
            members[0].close()
            asker.join(30)
    torch.set_num_threads(1)
    model = build_model(config)
    optimizer = build_optimizer(config, list(model.parameters()))
    trainer = UnsplitTrainer(model, build_loss(config), optimizer, seed=config.seed)
    possible, wanted = [], []
    for step, batch in enumerate(training_batches(data.train, 8, 3, config.seed, 0)):
        wanted.append(trainer.train_step(batch, step).loss)
        model.eval()
        with torch.inference_mode():
            possible.append(model(image))
    assert losses == wanted
    assert asked
    for answer in asked:
        assert any(torch.equal(answer, one) for one in possible)


def test_models_whose_inputs_are_indices_are_not_served_while_they_train() -> None:
    plan = make_plan(make_config())
    check_inputs(plan)
    words = type(plan.inputs[0])((8,), "int64")
    with pytest.raises(ConfigError, match="input 0 of the model is of int64"):
        check_inputs(type(plan)(**{**plan.__dict__, "inputs": (words,)}))
