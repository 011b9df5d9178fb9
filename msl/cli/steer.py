"""`msl steer` and `msl topology`: the path of a running chain, changed and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address
from pathlib import Path as File
from typing import TYPE_CHECKING

import click

from msl.cli.changes import show_changes
from msl.cli.console import line, table
from msl.cli.stop import orderly_stop
from msl.errors import ConfigError
from msl.plan import ChainPlan, DomainPlan
from msl.plan.addressing import Sid
from msl.plan.paths import Path, Way, hop_names, mirrored, show, ways_of

if TYPE_CHECKING:
    from msl.actors.running import RunningChain  # Ray: not before the network is entered
    from msl.actors.steerer import Standing

_FILE = click.Path(path_type=File)


@click.command()
@click.argument("run", required=False)
@click.option("--via", metavar="ROUTERS", help="Pass this router, or these in order (r1,r2); 'none': as routes lead.")
@click.option("--hop", "hops", metavar="FROM:TO", multiple=True, help="Only on this hop, e.g. nsf1:nsf2; repeatable.")
@click.option(
    "--direction",
    type=click.Choice(["both", "forward", "backward"]),
    default="both",
    help="Change the way forward, the way of the answers, or both.  [default: both]",
)
@click.option(
    "--segments", metavar="SIDS", help="The whole segment list instead, e.g. fd00::1,fd00::2; answers mirror it."
)
@click.option("--release", is_flag=True, help="Leave the path to the controller again.")
@click.option("--replay", type=_FILE, metavar="FILE", help="Decide again on a run's telemetry.jsonl, and compare.")
def steer(
    run: str | None,
    via: str | None,
    hops: tuple[str, ...],
    direction: str,
    segments: str | None,
    release: bool,
    replay: File | None,
) -> None:
    """Change the path of a running chain now; training and requests go on.

    RUN is a run's folder or a job's name; it may be left out if only one chain is running. Without an option the path
    is shown. The new path is tried first, and refused if it does not carry packets of full size.

    \b
      msl steer runs/RUN --via r2
      msl steer runs/RUN --via r2 --hop nsf1:nsf2 --direction backward
      msl steer --via none

    What is set by hand is kept by a controller (steering.policy) while it carries packets, until --release.
    """
    if replay is not None:
        _replay(replay)
        return
    if via is not None and segments is not None:
        raise ConfigError("--via and --segments: give one of them")
    if (hops or direction != "both") and via is None:
        raise ConfigError("--hop and --direction go with --via")
    from msl.actors import runs
    from msl.actors.network import join_network

    record = runs.find(run)
    with orderly_stop(line):
        from msl.actors import local

        cluster = local.find(record.cluster) if record.cluster else None
        if cluster is not None:
            join_network(cluster)
        from msl.actors.running import attached  # Ray: after the network is entered

        with attached(record) as running:
            now = running.standing()
            domain = running.agents.domain
            if release:
                running.agents.call("hold", running.chain.number, False, hosts=[running.chain.source])
                line("the controller may change the path again" if now.held else "the path was not held by hand")
            elif via is not None:
                ways = _through(now.path, running.chain, domain, via, hops, direction)
                _change(running, now, ways, f"--via {via}")
            elif segments is not None:
                _change(running, now, mirrored(ways_of(running.chain, domain, _sids(segments))), "--segments")
            else:
                _show(running, now)


def _through(path: Path, chain: ChainPlan, domain: DomainPlan, via: str, hops: Sequence[str], direction: str) -> Path:
    """A path with other ways on some hops."""
    names = hop_names(chain)
    for hop in hops:
        if hop not in names:
            raise ConfigError(f"--hop {hop}: no such hop; there are {', '.join(names)}")
    way = _way(via, domain)
    for index, name in enumerate(names):
        if hops and name not in hops:
            continue
        if direction == "both":
            path = path.with_forward(index, way).with_backward(index, None)
        elif direction == "forward":
            path = path.with_forward(index, way, keep_back=True)
        else:
            path = path.with_backward(index, way)
    return path


def _way(via: str, domain: DomainPlan) -> Way:
    """Routers by their names, or by their planes: plane2 is the second one's."""
    if via == "none":
        return ()
    names = [router.name for router in domain.routers]
    planes = {f"plane{number}": name for number, name in enumerate(names, 1)}
    way = tuple(planes.get(part.strip(), part.strip()) for part in via.split(","))
    for name in way:
        if name not in names:
            known = ", ".join(names) or "none"
            raise ConfigError(f"--via {via}: no router {name!r}; there are {known}, and 'none' for as the routes lead")
    return way


def _sids(text: str) -> tuple[Sid, ...]:
    try:
        return tuple(Sid(IPv6Address(part.strip())) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--segments {text}: {error}; write SIDs with commas between them") from error


def _change(running: RunningChain, now: Standing, after: Path, reason: str) -> None:
    from msl.actors.steerer import change_path

    if after == now.path:
        line(f"the path is that already: {show(after, running.chain)}")
        return
    done = change_path(running.agents, running.chain, now, after, f"by hand: {reason}")
    line(f"was  {done.before}")
    line(f"is   {done.after}")
    if done.first_packet_ms is None:
        line("no packet has come over it yet; every hop has been told of it")
    else:
        line(f"the first packet took it after {done.first_packet_ms:.1f} ms; all done after {done.took_ms:.0f} ms")


def _show(running: RunningChain, now: Standing) -> None:
    chain = running.chain
    report = running.agents.call("report", hosts=[chain.source])[chain.source]
    line(f"chain {chain.number} of {chain.job}: {show(now.path, chain)}")
    line(f"segments {', '.join(map(str, now.segments))}; changed {now.generation} times")
    controller = report.controllers.get(chain.number)
    held = ", held by hand (--release ends that)" if now.held else ""
    line(f"steered by {controller} ({running.config.steering.policy}){held}" if controller else "steered by hand only")
    show_changes(report.changes.get(chain.number, ()))


def _replay(file: File) -> None:
    from msl.steering.replay import replay

    if not file.exists():
        raise ConfigError(f"--replay {file}: no such file; steering.record keeps one in the run's folder")
    made = list(replay(file))
    other = [decided for decided in made if not decided.agrees]
    changes = sum(bool(decided.decision.changes) for decided in made)
    line(f"{len(made)} decisions, {changes} of them to change the path; {len(other)} differ from those recorded")
    for decided in made:
        for change in decided.decision.changes:
            mark = "" if decided.agrees else "  (recorded: another path)"
            place = f"hop {change.place.hop} {change.place.direction}"
            way = ", ".join(change.after) or "as the routes lead"
            line(f"{decided.now_s:.2f} s  {place}: {way} ({change.reason}){mark}")


@click.command()
@click.argument("run", required=False)
@click.option("--out", type=_FILE, metavar="FILE.svg", help="Draw it into this file.  [default: show the links]")
def topology(run: str | None, out: File | None) -> None:
    """Show hosts, routers and links of a running chain with their load, and the path on them.

    RUN is a run's folder or a job's name; it may be left out if only one chain is running.

    \b
      msl topology runs/RUN --out chain.svg
    """
    if out is not None and out.suffix != ".svg":
        raise ConfigError(f"--out {out}: the picture is an SVG; give a name that ends in .svg")
    from msl.actors import local, runs
    from msl.actors.network import join_network

    record = runs.find(run)
    with orderly_stop(line):
        cluster = local.find(record.cluster) if record.cluster else None
        if cluster is not None:
            join_network(cluster)
        from msl.actors.running import attached, look  # Ray: after the network is entered
        from msl.metrics.picture import draw, loads_between

        with attached(record) as running:
            view = look(running)
            routers = [router.name for router in running.agents.domain.routers]
            loads = loads_between(view.before, view.now)
            path = view.standing.path
            line(f"chain {view.chain.number} of {view.chain.job}: {show(path, view.chain)}")
            rows = [
                (
                    f"{host} -> {router}",
                    f"{load.out_mbit:.1f}",
                    f"{load.in_mbit:.1f}",
                    f"{load.share:.0%}",
                )
                for (host, router), load in sorted(loads.items())
            ]
            table("links", ("link", "Mbit/s there", "Mbit/s back", "full"), rows)
            if out is not None:
                out.write_text(draw(view.chain, path, list(view.now), routers, loads), encoding="utf-8")
                line(f"drawn into {out}")
