"""What a job is made of, built and measured before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msl.actors import local
from msl.config import Config
from msl.data import Splits
from msl.pipeline.balance import profile
from msl.pipeline.batches import sample_inputs, size
from msl.pipeline.build import build_data, build_model, check_job
from msl.pipeline.runtime import Module, set_threads
from msl.plan import ChainPlan, Plan, Profile, build, lay_out

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Job:
    """A configuration with its model and data, and the model measured."""

    config: Config
    data: Splits
    model: Module
    hosts: tuple[str, ...]
    profile: Profile

    def plan(self, cpus: Mapping[str, int], steered: ChainPlan | None = None) -> Plan:
        """The plan on hosts with so many CPUs, and with the chain's path if it is steered."""
        return build(self.config, self.profile, cpus, size(self.data.train), steered)


def prepare(config: Config) -> Job:
    """Build and measure a job; nothing is started.

    Raises:
        ConfigError: names the setting that cannot be done.
    """
    hosts, places = lay_out(config)
    data = build_data(config)
    model = build_model(config)
    check_job(config, data)
    set_threads(_threads(config, hosts))
    stages = sum(place.stage is not None for place in places)
    inputs = sample_inputs(data.train, max(2, config.train.micro_batch))
    measured = profile(model, config.split.cut, stages, inputs, config.split.leaf_modules)
    return Job(config, data, model, hosts, measured)


def _threads(config: Config, hosts: Sequence[str]) -> int:
    """Threads to measure with: what a stage on the weakest host would have."""
    return min(local.cpus_of(config, hosts).values())
