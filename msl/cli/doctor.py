"""`msl doctor`: what is needed, whether it is there, and what mends it."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from msl.cli.console import line, table
from msl.cli.stop import orderly_stop
from msl.cli.train import config_options
from msl.config import Config, load_config
from msl.errors import NetworkError
from msl.net.host_facts import check_packages, versions
from msl.net.requirements import Check, local_checks

if TYPE_CHECKING:
    from msl.actors.doctor import Examination, Finding
    from msl.actors.local import LocalCluster
    from msl.actors.network import Network

_MOST_ROWS = 12
_COLUMNS = ("need", "result", "found", "remedy")


@click.command()
@config_options(required=False)
@click.option(
    "--start", is_flag=True, help="Start what is not running (cluster, SFC agents), and end it after the check."
)
def doctor(config_path: Path | None, overrides: tuple[str, ...], start: bool) -> None:
    """Check what is needed, and say what mends it.

    Without --config: what this machine needs for the fabric sfc. With --config also its hosts, if its cluster
    is running (or with --start): versions, clocks, interfaces, and whether the hosts reach each other with
    full-sized packets, each SID leads to its host's proxy, and each waypoint passes packets on.

    Ends with 0 if all needs are met, with 4 if one is not. What --start has started is gone then; else
    nothing is changed.

    \b
      msl doctor
      msl doctor --config configs/resnet.yaml --start
    """
    if config_path is None and (overrides or start):
        raise click.UsageError("--set and --start need --config.")
    config = load_config(config_path, overrides) if config_path is not None else None
    needs = _needs_of_sfc(config)
    checks = [*needs, check_packages(versions())]
    table(f"this machine ({platform.node()})", _COLUMNS, [_cells(check) for check in checks])
    if config is not None:
        with orderly_stop(line):
            found = _examine(config, start)
        if found is not None:
            _show(found)
            checks += [finding.check for finding in (*found.hosts, *found.pairs)]
    failed = sum(not check.ok for check in checks)
    if not failed:
        line(f"all {len(checks)} needs are met")
        return
    raise NetworkError(f"{failed} of {len(checks)} needs are not met{_meaning(config, needs)}")


def _needs_of_sfc(config: Config | None) -> list[Check]:
    """What the fabric sfc needs of this machine, if it is to carry it."""
    # The driver of an existing cluster needs nothing of that: the hosts do.
    if config is None or (config.cluster.address is None and config.fabric != "direct"):
        return local_checks()
    return []


def _meaning(config: Config | None, needs: Sequence[Check]) -> str:
    if all(check.ok for check in needs):
        return ""
    if config is not None and config.fabric == "sfc":
        return "; this machine cannot have the fabric sfc, which the configuration demands"
    return "; on this machine msl will use plain TCP (fabric direct)"


def _examine(config: Config, start: bool) -> Examination | None:
    """Look at the hosts of a running cluster; None if there is none."""
    from msl.actors import local

    name = config.cluster.name
    kept = local.find(name) if config.cluster.address is None else None
    if kept is None and config.cluster.address is None and not start:
        line(f"no cluster {name!r} is running: its hosts are checked once 'msl up' has started them, or with --start")
        return None
    with _entered(config, kept) as network:
        from msl.actors.doctor import examine  # Ray: after the network is entered

        return examine(config, network, start, line)


@contextlib.contextmanager
def _entered(config: Config, kept: LocalCluster | None) -> Iterator[Network]:
    """As for a job; but a running cluster is entered also if it has lost hosts."""
    from msl.actors.network import Network, entered_network, join_network

    if kept is None:
        with entered_network(config, line) as network:
            yield network
        return
    if kept.hosts[0] not in kept.dead_hosts():
        join_network(kept)
    if config.fabric == "sfc" and not kept.testbed:
        line(f"the running cluster {kept.name!r} has no testbed, and so no fabric sfc")
    yield Network(kept, kept.private, "sfc" if kept.testbed and config.fabric != "direct" else "direct")


def _show(found: Examination) -> None:
    for remark in found.remarks:
        line(remark)
    table("hosts", ("host", *_COLUMNS), [(finding.where, *_cells(finding.check)) for finding in found.hosts])
    if found.pairs:
        table("pairs of hosts", ("hosts", *_COLUMNS), _pair_rows(found.pairs))


def _pair_rows(pairs: Sequence[Finding]) -> list[tuple[str, ...]]:
    """All rows; if they are many, those that fail and how many do not."""
    rows = [(finding.where, *_cells(finding.check)) for finding in pairs]
    if len(pairs) <= _MOST_ROWS:
        return rows
    failing = [row for row, finding in zip(rows, pairs, strict=True) if not finding.check.ok]
    passing = len(pairs) - len(failing)
    return [*failing, (f"{'the others' if failing else 'all'}", "addresses and SIDs", "pass", f"{passing} checks", "")]


def _cells(check: Check) -> tuple[str, ...]:
    return check.need, "pass" if check.ok else "FAIL", check.found, check.remedy
