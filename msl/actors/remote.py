"""The Ray actor round a chain member, and its counters as Ray's own metrics."""

from __future__ import annotations

import sys
from typing import Any

import ray

from msl.actors.member import ChainMember, Identity, Report
from msl.config import Config
from msl.metrics.prometheus import StageMetrics
from msl.net.sfc.fabric import SfcFabric
from msl.plan import Plan


@ray.remote
class MemberActor(ChainMember):
    """A source, an NSF or a sink as a Ray actor; see `ChainMember`."""

    def __init__(
        self, import_folder: str, config: Config, plan: Plan, hop: int, job: str, address: str, **options: Any
    ) -> None:
        # Factories may lie in the folder in which msl was started.
        if import_folder not in sys.path:
            sys.path.insert(0, import_folder)
        if plan.steered is not None:
            fabric = SfcFabric(plan.steered, hop, config.timeouts.connect_s)
            options["make_fabric"] = lambda _address, _next_hop: fabric
        super().__init__(config, plan, hop, job, address, **options)
        place = plan.members[hop].place
        self._metrics = StageMetrics(job=config.name, stage=place.name, host=place.host)

    def identify(self, ray_node: str | None = None) -> Identity:
        """Where this member runs, as Ray tells."""
        return super().identify(ray_node or ray.get_runtime_context().get_node_id())

    def status(self) -> Report:
        """As the member's; also passes the records on to Ray's metrics."""
        report = super().status()
        for record in report.records:
            self._metrics.observe(record)
        return report
