"""Who stands where when a trained model is served: the client is the source, and all stages live behind it."""

from __future__ import annotations

from msl.config import ChainConfig, Config, HostConfig
from msl.errors import ConfigError
from msl.plan.layout import lay_out


def serving_config(config: Config) -> Config:
    """The configuration of a job as a service: the same model and cut, with a chain that begins at a client.

    Raises:
        ConfigError: `serve.hosts` does not fit the number of stages.
    """
    names, places = lay_out(config)
    stages = sum(place.stage is not None for place in places)
    source = places[0].host
    assigned = config.serve.hosts
    if assigned is None and places[0].stage is None:
        assigned = tuple(place.host for place in places[1:])
    elif assigned is None:
        assigned = _spread(tuple(dict.fromkeys(p.host for p in places[1:] if p.host != source)) or (source,), stages)
    if len(assigned) != stages:
        raise ConfigError(f"serve.hosts: {len(assigned)} hosts for {stages} stages; name one for each")
    chain = ChainConfig(source=source, nsfs=assigned[:-1], sink=assigned[-1], stage_at_source=False)
    hosts = config.hosts or tuple(HostConfig(name=name) for name in names)
    return config.model_copy(update={"chain": chain, "hosts": hosts})


def _spread(hosts: tuple[str, ...], stages: int) -> tuple[str, ...]:
    """Neighbouring stages to each host, as evenly as it comes out; the first hosts take one more."""
    each, more = divmod(stages, len(hosts))
    return tuple(host for i, host in enumerate(hosts) for _ in range(each + (i < more)))
