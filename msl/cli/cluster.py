"""`msl up`, `msl status` and `msl down`: a cluster that is kept between runs."""

from __future__ import annotations

from pathlib import Path

import click

from msl.cli.console import line, table
from msl.cli.stop import orderly_stop
from msl.cli.train import config_options
from msl.config import ClusterConfig, load_config
from msl.errors import ClusterError


def _name(config_path: Path | None, overrides: tuple[str, ...]) -> str:
    return load_config(config_path, overrides).cluster.name if config_path else ClusterConfig().name


@click.command()
@config_options()
def up(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Start a config's cluster, and keep it until `msl down`.

    One raylet per host. Runs of `msl train` use it instead of starting their own.
    """
    config = load_config(config_path, overrides)
    if config.cluster.address is not None:
        raise ClusterError(
            f"cluster.address: {config.cluster.address} is an existing cluster; there is nothing to start"
        )
    from msl.actors.network import entered_network

    with orderly_stop(line), entered_network(config, line, keep=True) as network:
        from msl.actors import cluster  # Ray: after the network is entered

        started = cluster.bring_up(config, network)
    line(f"cluster {started.name!r} is up: {', '.join(f'{h.name} at {h.address}' for h in started.hosts)}")


@click.command()
@config_options(required=False)
def status(config_path: Path | None, overrides: tuple[str, ...]) -> None:
    """Show the hosts of the running cluster, and what runs on them."""
    name = _name(config_path, overrides)
    from msl.actors import local
    from msl.actors.network import join_network

    kept = local.find(name)
    if kept is None:
        line(f"no cluster {name!r} is running")
        return
    if kept.hosts[0] not in kept.dead_hosts():
        join_network(kept)
    from msl.actors import cluster  # Ray: after the network is entered

    found = cluster.look(kept)
    kind = "in a network namespace of its own" if found.cluster.private else "on this machine's network"
    rows = [(h.name, h.state, h.address, str(h.cpus), h.metrics, ", ".join(h.members) or "-") for h in found.hosts]
    table(f"cluster {name!r}, {kind}", ("host", "state", "address", "cpus", "metrics", "members"), rows)


@click.command()
@config_options(required=False)
def down(config_path: Path | None, overrides: tuple[str, ...]) -> None:
    """End the running cluster, and remove what crashed runs left behind."""
    name = _name(config_path, overrides)
    from msl.actors import local

    for stale in local.stop_stale():
        line(f"removed what the crashed cluster {stale!r} had left behind")
    found = local.find(name)
    if found is None:
        line(f"no cluster {name!r} is running")
        return
    local.stop(found)
    line(f"cluster {name!r} is down")
