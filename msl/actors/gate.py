"""The gate of a chain that trains: clients ask it at the source, and its latest complete step answers.

Between two steps the source sends what waits down the chain in eval mode. All stages have done the step before, and
none has begun the next one, so that all compute with weights of the same step.
"""

from __future__ import annotations

from collections.abc import Sequence

from msl.config import Config
from msl.errors import ConfigError, MslError
from msl.net.fabric import DirectFabric, Endpoint, endpoint_of
from msl.pipeline.serving.compute import Outputs, inputs_of
from msl.pipeline.serving.request import Request
from msl.pipeline.serving.rules import rules_of
from msl.pipeline.serving.service import Service
from msl.pipeline.serving.turns import Turns
from msl.pipeline.source import SourceLoop
from msl.plan import Plan


def check_inputs(plan: Plan) -> None:
    """Refuse models for which a client's numbers could end the training.

    Raises:
        ConfigError: an input is not of floating point: an index out of range would fail a stage of the chain.
    """
    for index, spec in enumerate(plan.inputs):
        if not spec.dtype.startswith(("float", "bfloat")):
            raise ConfigError(
                f"--serve: input {index} of the model is of {spec.dtype}; while it trains, only floating-point inputs"
                " are served, as an index out of range would end the training; serve a checkpoint with msl serve"
            )


class Gate:
    """Takes requests in at the source of a chain that trains.

    Args:
        config: the job.
        plan: its plan.
        address: address of the source's host.
        loop: the source's loop; its `between_steps` is taken.
        step: optimizer steps that the weights have behind them.
    """

    def __init__(self, config: Config, plan: Plan, address: str, loop: SourceLoop, step: int) -> None:
        rules = rules_of(config, plan, plan.source.place, 1, step)
        listener = DirectFabric(address, port=config.sr.port).listen()
        self.endpoint: Endpoint = endpoint_of(listener)
        self._service = Service(rules, None, None, listener, Turns())
        self._loop = loop
        self._service.start()
        loop.between_steps = self._answer

    def close(self) -> None:
        """Turn clients away."""
        self._loop.between_steps = lambda _step: None
        self._service.close()

    def _answer(self, step: int) -> None:
        def compute(requests: Sequence[Request]) -> Sequence[Outputs | MslError]:
            return self._loop.infer([inputs_of(request) for request in requests], step)

        self._service.work(compute, step)
