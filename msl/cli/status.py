"""What `msl status` shows of a running cluster."""

from __future__ import annotations

from ipaddress import IPv6Address

from msl.actors.kept import ClusterStatus, DomainStatus
from msl.cli.changes import show_changes
from msl.cli.console import line, table
from msl.net.sfc.layout import REASONS, Way
from msl.net.sfc.report import HostReport, LinkReport
from msl.plan import ChainPlan, DomainPlan, count_bytes

_MOST_FLOWS = 20


def show(status: ClusterStatus) -> None:
    """Show the hosts, and the SR domain if there is one."""
    kind = "in a network namespace of its own" if status.cluster.private else "on this machine's network"
    if status.cluster.testbed:
        kind = "on a testbed of network namespaces"
    rows = [(h.name, h.state, h.address, str(h.cpus), h.metrics, ", ".join(h.members) or "-") for h in status.hosts]
    title = f"cluster {status.cluster.name!r}, {kind}"
    table(title, ("host", "state", "address", "cpus", "metrics", "members"), rows)
    if status.cluster.testbed and status.domain is None:
        line("the hosts' agents do not run; a host is dead, or the cluster is starting")
    if status.domain is not None:
        _show_domain(status.domain, status.cluster.domain())


def _show_domain(status: DomainStatus, domain: DomainPlan) -> None:
    names = _names(status.chains, domain)
    reports = list(status.now.values())
    _show_chains(status, names)
    _show_steering(status)
    _show_sids(reports, names)
    rows = [
        _link_row(report, link, before, report.monotonic_s - status.before[report.host].monotonic_s)
        for report in reports
        for link, before in zip(report.links, status.before[report.host].links, strict=True)
    ]
    table("links", ("host", "link", "MTU", "rate", "in", "out", "bytes in", "bytes out", "drops"), rows)
    _show_flows(reports, names)
    drops = [
        (report.host, reason, str(count), REASONS[reason])
        for report in reports
        for reason, count in report.drops.items()
        if count
    ]
    if drops:
        table("packets dropped by the proxies", ("host", "reason", "packets", "meaning"), drops)
    else:
        line("packets dropped by the proxies: none")


def _show_chains(status: DomainStatus, names: dict[str, str]) -> None:
    if not status.chains:
        line("chains: none")
        return
    paths = {path.service: path for report in status.now.values() for path in report.paths}
    rows = []
    for chain in status.chains:
        path = paths.get(str(chain.service))
        segments = path.segments if path is not None else tuple(map(str, chain.segments))
        hops = " -> ".join(names.get(sid, sid) for sid in segments)
        changes = str(path.generation) if path is not None else "-"
        rows.append((str(chain.number), chain.job, f"[{chain.service}]:{chain.port}", chain.source, hops, changes))
    table("chains", ("chain", "job", "service", "source", "segment list", "changes"), rows)


def _show_steering(status: DomainStatus) -> None:
    for chain in status.chains:
        report = status.now.get(chain.source)
        if report is None:
            continue
        if (controller := report.controllers.get(chain.number)) is not None:
            line(f"chain {chain.number} is steered by {controller}")
        show_changes(report.changes.get(chain.number, ()))


def _show_sids(reports: list[HostReport], names: dict[str, str]) -> None:
    rows = []
    for report in reports:
        for sid in report.sids:
            packets = [sid.packets[way] for way in Way]
            num_bytes = [sid.bytes[way] for way in Way]
            cells = (f"{p:,} ({count_bytes(b)})" for p, b in zip(packets, num_bytes, strict=True))
            rows.append((report.host, sid.sid, sid.kind, names.get(sid.sid, "-"), *cells))
    table("SIDs", ("host", "SID", "kind", "member", "in forward", "out forward", "in backward", "out backward"), rows)


def _show_flows(reports: list[HostReport], names: dict[str, str]) -> None:
    rows = []
    for report in reports:
        for flow in report.flows:
            path = " -> ".join(names.get(sid, sid) for sid in flow.segments)
            total = count_bytes(sum(flow.bytes))
            rows.append((report.host, flow.client, flow.service, path, f"{sum(flow.packets):,}", total))
    if not rows:
        line("flows: none")
        return
    table("flows", ("host", "client", "service", "path", "packets", "bytes"), rows[:_MOST_FLOWS])
    more = sum(report.num_flows for report in reports) - _MOST_FLOWS
    if more > 0:
        line(f"... and {more} more flows")


def _link_row(report: HostReport, link: LinkReport, before: LinkReport, seconds: float) -> tuple[str, ...]:
    bits = ((link.bytes_in - before.bytes_in) * 8 / seconds, (link.bytes_out - before.bytes_out) * 8 / seconds)
    return (
        report.host,
        link.interface,
        str(link.mtu),
        f"{link.rate_mbit:g} Mbit/s" if link.rate_mbit is not None else "no limit",
        *(f"{rate / 1e6:.1f} Mbit/s" for rate in bits),
        count_bytes(link.bytes_in),
        count_bytes(link.bytes_out),
        str(link.drops),
    )


def _names(chains: tuple[ChainPlan, ...], domain: DomainPlan) -> dict[str, str]:
    """Readable names of SIDs."""
    found = {str(host.decap): f"{host.name} (replies)" for host in domain.hosts}
    found |= {str(router.sid): router.name for router in domain.routers}
    for chain in chains:
        found |= {str(stop.sid): f"{stop.name}@{stop.host}" for stop in chain.stops}
    return {str(IPv6Address(sid)): name for sid, name in found.items()}
