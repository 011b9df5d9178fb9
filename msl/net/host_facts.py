"""What a host tells of itself in a preflight, and the judgement on it; judging is pure."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

import msl
from msl.net.requirements import Check, local_checks

MISSING = "missing"
"""Version of a package that is not installed."""
THIS_MACHINE = "this machine"
_PACKAGES = ("ray", "torch", "pyroute2")
_IFF_UP = 1
_NO_CARRIER = ("DOWN", "LOWERLAYERDOWN")
_MOST_SKEW_S = 1.0


@dataclass(frozen=True)
class LinkFacts:
    """An interface that the configuration names."""

    name: str
    mtu: int
    """0 if there is no such interface."""
    up: bool = True
    carrier: bool = True
    """Whether something is at its other end."""
    ipv6: bool = True


@dataclass(frozen=True)
class HostFacts:
    """What a host tells of itself."""

    kernel: str
    versions: Mapping[str, str]
    """Of Python and of packages, by name."""
    links: tuple[LinkFacts, ...]
    needs: tuple[Check, ...]
    """What the fabric `sfc` needs; none if it is not to be used."""


@dataclass(frozen=True)
class ClockReading:
    """A host's clock, asked for over the network; seconds since 1970."""

    sent_s: float
    """This machine's clock when it asked."""
    told_s: float
    """The host's clock."""
    received_s: float
    """This machine's clock when the answer came."""

    @property
    def skew_s(self) -> float:
        """How far the host's clock is ahead, if question and answer took equally long."""
        return self.told_s - (self.sent_s + self.received_s) / 2

    @property
    def uncertainty_s(self) -> float:
        """How wrong `skew_s` can be."""
        return (self.received_s - self.sent_s) / 2


def look(interfaces: Sequence[str], sfc: bool) -> HostFacts:
    """Look at this host.

    Args:
        interfaces: those that lead to the SR domain.
        sfc: also what the fabric `sfc` needs.
    """
    needs = tuple(local_checks(testbed=False)) if sfc else ()
    with IPRoute() as netlink:
        links = tuple(_look_at_link(netlink, name) for name in interfaces)
    return HostFacts(platform.release(), versions(), links, needs)


def versions() -> dict[str, str]:
    """Of Python, of msl and of what it is built on; by their metadata, as importing takes long."""
    found = {"python": platform.python_version(), "msl": msl.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = MISSING
    return found


def _look_at_link(netlink: IPRoute, name: str) -> LinkFacts:
    found = netlink.link_lookup(ifname=name)
    if not found:
        return LinkFacts(name, 0, False, False, False)
    link = netlink.link("get", index=found[0])[0]
    disabled = Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6")
    return LinkFacts(
        name,
        link.get_attr("IFLA_MTU"),
        bool(link["flags"] & _IFF_UP),
        link.get_attr("IFLA_OPERSTATE") not in _NO_CARRIER,
        disabled.exists() and disabled.read_text().strip() == "0",
    )


def check_packages(found: Mapping[str, str]) -> Check:
    """All packages must be there."""
    lacking = [name for name, version in found.items() if version == MISSING]
    told = ", ".join(f"{name} {version}" for name, version in found.items())
    return Check("Python packages", not lacking, told, "python -m pip install " + " ".join(lacking) if lacking else "")


def check_versions(by_host: Mapping[str, Mapping[str, str]], here: Mapping[str, str]) -> dict[str, Check]:
    """Compare versions; most hosts are right, and this machine where they are evenly split.

    Args:
        by_host: versions on each host.
        here: versions on this machine, the driver.

    Returns:
        The judgement on each host; one on `THIS_MACHINE` only if it is an odd one out.
    """
    everywhere = {**by_host, THIS_MACHINE: here}
    right = {
        name: _most_frequent([found.get(name, MISSING) for found in everywhere.values()], here[name]) for name in here
    }
    checks = {}
    for where, found in everywhere.items():
        odd = {name: found.get(name, MISSING) for name in right if found.get(name, MISSING) != right[name]}
        told = ", ".join(f"{name} {version}, elsewhere {right[name]}" for name, version in odd.items())
        same = ", ".join(f"{name} {version}" for name, version in found.items())
        remedy = "; ".join(_install(name, right[name]) for name in odd)
        if odd or where != THIS_MACHINE:
            checks[where] = Check("versions as elsewhere", not odd, told or same, remedy)
    return checks


def _most_frequent(values: Sequence[str], preferred: str) -> str:
    counts = Counter(values)
    best = max(counts.values())
    return preferred if counts[preferred] == best else next(value for value in counts if counts[value] == best)


def _install(name: str, version: str) -> str:
    if name in ("python", "msl"):
        return f"install {name} {version}"
    return f"python -m pip install {name}=={version}"


def check_links(links: Sequence[LinkFacts], mtu: int) -> Iterator[Check]:
    """Judge a host's interfaces to the SR domain.

    Args:
        links: the interfaces.
        mtu: that each must have at least.
    """
    for link in links:
        need = f"interface {link.name}"
        if not link.mtu:
            yield Check(need, False, "there is none", "name the host's own in hosts; 'ip link' lists them")
        elif not link.up:
            yield Check(need, False, "is down", f"ip link set {link.name} up")
        elif not link.carrier:
            yield Check(need, False, "has no carrier", "set its other end up, or plug its cable in")
        elif link.mtu < mtu:
            yield Check(need, False, f"MTU {link.mtu}, needed are {mtu}", f"ip link set {link.name} mtu {mtu}")
        elif not link.ipv6:
            remedy = f"sysctl -w net.ipv6.conf.{link.name}.disable_ipv6=0"
            yield Check(need, False, "IPv6 is disabled", remedy)
        else:
            yield Check(need, True, f"up, MTU {link.mtu}", "")


def check_clock(readings: Sequence[ClockReading]) -> Check:
    """Judge a host's clock by the reading that came fastest."""
    best = min(readings, key=lambda reading: reading.uncertainty_s)
    wrong = abs(best.skew_s) - best.uncertainty_s > _MOST_SKEW_S
    found = f"{1e3 * best.skew_s:+.1f} ms against {THIS_MACHINE} (±{1e3 * best.uncertainty_s:.1f})"
    return Check(
        "clock", not wrong, found, "timedatectl set-ntp true, or with chrony: chronyc makestep" if wrong else ""
    )
