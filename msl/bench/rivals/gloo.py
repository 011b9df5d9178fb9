"""Training by torch's own pipeline over gloo, one process for each stage."""

from __future__ import annotations

import contextlib

import ray

from msl.bench.rivals.contest import Contest, Rival, StageActors
from msl.bench.rivals.gloo_rank import GlooRank, Order
from msl.errors import ConfigError, MslError


@ray.remote
class RankActor(GlooRank):
    """A rank as a Ray actor: Ray cannot pickle a class that has torch's own in its reach, but finds its base."""


class GlooPipeline(Rival):
    """The stages as `torch.distributed.pipelining` runs them, with gloo between the hosts.

    The ranks are Ray actors, of which Ray carries nothing while they train. Gloo listens at the hosts' addresses in
    the network of the fabric, IPv6 ones on a testbed, and connects there by plain TCP. The first rank makes the
    batches, and the last one makes them again for their targets, which torch does not send along. Losses are
    bit-identical to the unsplit model's with as many threads.

    Args:
        contest: what is trained, and where.
        order: of a step's passes.

    Raises:
        ConfigError: there is only one stage, or torch has no such schedule: micro-batches would differ in size, or be
            fewer than the stages.
        MslError: a rank could not be started, or did not find the others.
    """

    def __init__(self, contest: Contest, order: Order = "1f1b") -> None:
        train = contest.config.train
        if len(contest.stages) < 2:
            raise ConfigError("split: this rival needs two stages or more")
        if train.batch_size % train.micro_batch:
            raise ConfigError(
                f"train.micro_batch: {train.micro_batch} does not divide batch_size {train.batch_size}; torch's"
                " pipeline needs micro-batches of one size"
            )
        if order == "1f1b" and train.batch_size // train.micro_batch < len(contest.stages):
            raise ConfigError(
                f"train.micro_batch: {train.batch_size // train.micro_batch} micro-batches for {len(contest.stages)}"
                " stages; torch's 1F1B needs one for each stage, its GPipe does not"
            )
        self._contest = contest
        timeouts = contest.config.timeouts
        self._ranks = StageActors(contest, RankActor, "gloo pipeline")
        try:
            port = self._ranks.call(0, "free_port", timeouts.start_s)
            address = contest.session.nodes[contest.stages[0].place.host].address
            host = f"[{address}]" if ":" in address else address
            self._ranks.call_all("join", timeouts.start_s, f"tcp://{host}:{port}", order, timeouts.step_s)
        except BaseException:
            self.close()
            raise

    def train_steps(self, epoch: int, first_step: int, count: int) -> list[tuple[float, float]]:
        """Train the first steps of an epoch.

        Args:
            epoch: whose batches are taken.
            first_step: number of the first step, from the beginning of the training.
            count: number of steps, all of them with full batches.

        Returns:
            Loss and wall seconds of each step. The first rank takes the time, from before it makes the batch until its
            optimizer has stepped.

        Raises:
            ConfigError: an epoch has fewer full batches.
            MslError: a rank failed, or did not answer in time.
        """
        full = self._contest.plan.train_samples // self._contest.config.train.batch_size
        if count > full:
            raise ConfigError(
                f"{count} steps: an epoch has {full} full batches, and torch's pipeline needs batches of one size"
            )
        timeout_s = count * self._contest.config.timeouts.step_s
        told = self._ranks.call_all("train_steps", timeout_s, epoch, first_step, count)
        return list(zip(told[-1], told[0], strict=True))

    def close(self) -> None:
        """Leave the group, and end the ranks whether or not they could."""
        with contextlib.suppress(MslError):
            self._ranks.call_all("leave", self._contest.config.timeouts.stop_s)
        self._ranks.kill()
