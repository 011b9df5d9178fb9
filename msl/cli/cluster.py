"""`msl up`, `msl status` and `msl down`: a cluster that is kept between runs."""

from __future__ import annotations

import time
from pathlib import Path

import click

from msl.cli.console import clear, line
from msl.cli.stop import orderly_stop
from msl.cli.train import config_options
from msl.config import ClusterConfig, Config, load_config
from msl.errors import ClusterError

_WATCH_S = 1.0


def _name(config_path: Path | None, overrides: tuple[str, ...]) -> str:
    return load_config(config_path, overrides).cluster.name if config_path else ClusterConfig().name


@click.command()
@config_options()
def up(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Start a config's cluster, and keep it until `msl down`.

    One raylet per host. With the fabric sfc (as root) the hosts are network namespaces, joined by planes of SRv6
    routers; else all are in one private namespace. Runs of `msl train` use it instead of starting their own.
    """
    config = load_config(config_path, overrides)
    if config.cluster.address is not None:
        raise ClusterError(
            f"cluster.address: {config.cluster.address} is an existing cluster; there is nothing to start"
        )
    from msl.actors.network import entered_network

    with orderly_stop(line), entered_network(config, line, keep=True) as network:
        from msl.actors.kept import bring_up  # Ray: after the network is entered

        started = bring_up(config, network)
    line(f"cluster {started.name!r} is up: {', '.join(f'{h.name} at {h.address}' for h in started.hosts)}")


@click.command()
@click.argument("run", required=False)
@config_options(required=False)
@click.option("--watch", is_flag=True, help="Show it again every second or two, until Ctrl-C.")
def status(run: str | None, config_path: Path | None, overrides: tuple[str, ...], watch: bool) -> None:
    """Show the services and the hosts of the running cluster, what runs on them, and its SR domain.

    With RUN (a run's folder or a job's name) it is the cluster that this run has brought up for itself.

    Of a service: requests per second and latencies. With the fabric sfc: chains with their segment lists, SIDs and
    their traffic, changes of path and why, links with their rates, flows, and the packets that the proxies dropped.
    """
    from msl.actors import local, runs, services

    name = runs.find(run).cluster if run is not None else _name(config_path, overrides)
    if run is not None and not name:
        raise ClusterError(f"{run}: runs on an existing Ray cluster; 'msl steer' and 'msl topology' show its chain")
    from msl.actors.network import join_network
    from msl.cli.services import show_services

    kept = local.find(name)
    if kept is None:
        line(f"no cluster {name!r} is running")
        with orderly_stop(line):
            show_services(services.running())
            while watch:
                time.sleep(_WATCH_S)
                clear()
                show_services(services.running())
        return
    if kept.hosts[0] not in kept.dead_hosts():
        join_network(kept)
    from msl.actors.kept import look  # Ray: after the network is entered
    from msl.actors.kept import watch as looks
    from msl.cli.status import show

    if not watch:
        show_services(services.running())
        show(look(kept))
        return
    with orderly_stop(line):
        for seen in looks(kept):
            clear()
            show_services(services.running())
            show(seen)
            time.sleep(_WATCH_S)


@click.command()
@config_options(required=False)
def down(config_path: Path | None, overrides: tuple[str, ...]) -> None:
    """End the running cluster, and remove what crashed runs left behind.

    With a config that names an existing cluster: remove what msl has set up on its hosts. The cluster itself, and
    whatever else is there, is not touched.
    """
    config = load_config(config_path, overrides) if config_path else None
    if config is not None and config.cluster.address is not None:
        _clean_hosts(config)
        return
    name = config.cluster.name if config is not None else ClusterConfig().name
    from msl.actors import local, runs, services

    for record in services.running():
        if config is None or record.name == config.name:
            ended = services.stop(record)
            line(f"service {record.name!r} is down" + ("" if ended else "; it had to be killed"))
    for stale in local.stop_stale():
        line(f"removed what the crashed cluster {stale!r} had left behind")
    runs.running()  # removes the records of those that are gone
    found = local.find(name)
    if found is None and local.remove_testbed(name):
        line(f"removed the testbed {name!r}, which had no cluster")
    elif found is None:
        line(f"no cluster {name!r} is running")
    else:
        local.stop(found)
        line(f"cluster {name!r} is down")


def _clean_hosts(config: Config) -> None:
    from msl.actors.network import entered_network

    with orderly_stop(line), entered_network(config, line) as network:
        from msl.actors.kept import remove_agents  # Ray: after the network is entered

        for host, removed in remove_agents(config, network).items():
            line(f"host {host}: removed {', '.join(removed) or 'nothing'}")
