"""One job's chain at several lengths, on the same hosts: the configurations of a benchmark that compares them."""

from __future__ import annotations

from collections.abc import Sequence

from msl.actors.local import cpus_of
from msl.config import ChainConfig, Config, HostConfig, SplitConfig
from msl.errors import ConfigError
from msl.plan import lay_out


def own_stages(config: Config) -> int:
    """Stages of the job itself."""
    return sum(place.stage is not None for place in lay_out(config)[1])


def of_length(config: Config, stages: Sequence[int], stage_at_source: bool, bench: str) -> dict[int, Config]:
    """The job with so many stages, each on a host of its own, on a local cluster that is the benchmark's own.

    All have the same hosts: the job's, source first, and as many more as the longest chain needs. They have equally
    many CPUs, so that all stages round alike, and services merge no requests, for the same reason. The job's own cut is
    taken for as many stages as it makes; other numbers of stages are balanced.

    Args:
        config: the job.
        stages: how many, of each chain.
        stage_at_source: whether the source computes the first of them.
        bench: which benchmark; its cluster is named after it.

    Raises:
        ConfigError: the job is for an existing cluster, on which hosts cannot be added.
    """
    if config.cluster.address is not None:
        raise ConfigError("cluster.address: this benchmark starts a cluster of its own; leave it out")
    names, places = lay_out(config)
    threads = min(cpus_of(config, names).values())
    extra = 0 if stage_at_source else 1
    order = _enough([places[0].host, *(name for name in names if name != places[0].host)], max(stages) + extra)
    known = {host.name: host for host in config.hosts}
    shared = {
        "hosts": tuple(known.get(n, HostConfig(name=n)).model_copy(update={"cpus": threads}) for n in order),
        "cluster": config.cluster.model_copy(update={"name": f"{config.cluster.name}-{bench}", "network": "private"}),
        # Several chains at once: each has the service address that follows from its number.
        "sr": config.sr.model_copy(update={"service": None, "via": _for_any_length(config)}),
        "serve": config.serve.model_copy(update={"hosts": None, "max_wait_ms": 0.0}),
    }
    found = {}
    for number in stages:
        size = number + extra
        if size < 2:
            raise ConfigError(f"{number} stages cannot make a chain, which has a source and a sink")
        chain = ChainConfig(
            source=order[0], nsfs=tuple(order[1 : size - 1]), sink=order[size - 1], stage_at_source=stage_at_source
        )
        found[number] = config.model_copy(update={**shared, "chain": chain, "split": _split(config, number)})
    return found


def _enough(names: list[str], size: int) -> list[str]:
    """The names, with further ones if there are fewer than `size`."""
    spare = (f"n{number}" for number in range(size + len(names)))
    return names + [name for name in spare if name not in names][: max(0, size - len(names))]


def _split(config: Config, stages: int) -> SplitConfig:
    if config.split.cut is not None and len(config.split.cut) + 1 == stages:
        return config.split
    return SplitConfig(stages=stages, leaf_modules=config.split.leaf_modules)


def _for_any_length(config: Config) -> str | None:
    """The router of all hops; a list has one for each hop of one length only."""
    return config.sr.via if isinstance(config.sr.via, str) else None
