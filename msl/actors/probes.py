"""One probe actor on each host, and a driver that asks them all at once and waits for none of them for ever."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from msl.actors.cluster import Node
from msl.net import host_facts, sid_probe
from msl.net.host_facts import ClockReading, HostFacts
from msl.net.probe import IPAddress, Reach, Responder, reach
from msl.plan.addressing import Sid

K = TypeVar("K")

ASK_S = 20.0
"""Longest wait for an answer that takes no time."""
_AT_ONCE = 8
_REACH_S = 12.0  # a little more than `reach` takes at most


class ProbeService:
    """Looks at its host, and at others from there; for a Ray actor."""

    def __init__(self) -> None:
        self._responders: list[Responder] = []

    def look(self, interfaces: tuple[str, ...], sfc: bool) -> HostFacts:
        """What this host is like."""
        return host_facts.look(interfaces, sfc)

    def clock(self) -> float:
        """This host's time."""
        return time.time()

    def listen(self, address: str) -> int:
        """Answer the other hosts' probes at an address of this host; the port."""
        self._responders.append(Responder(ip_address(address)))
        return self._responders[-1].port

    def reach(self, own: IPAddress, target: IPAddress, port: int, size: int | None) -> Reach:
        """How far packets get from here."""
        return reach(own, target, port, size)

    def knock(self, own: IPv6Address, sid: Sid, via: Sid | None) -> None:
        """Send datagrams to a SID."""
        sid_probe.knock(own, sid, via)


_ProbeActor: Any = ray.remote(ProbeService)


class Probes:
    """The probes of several hosts, as a driver calls them.

    Args:
        actors: handle of each host's probe.
    """

    def __init__(self, actors: Mapping[str, Any]) -> None:
        self._actors = actors

    def ask(
        self, method: str, questions: Mapping[K, tuple[str, tuple[Any, ...]]], timeout_s: float = ASK_S
    ) -> tuple[dict[K, Any], dict[K, str]]:
        """Ask everything at once.

        Args:
            method: of the probes.
            questions: by whatever tells them apart: a host, and the method's arguments.
            timeout_s: longest wait for all of them together.

        Returns:
            The answers, and the reasons why there is none.
        """
        asked = {key: getattr(self._actors[host], method).remote(*given) for key, (host, given) in questions.items()}
        return gather(asked, timeout_s)

    def reach(
        self, questions: Mapping[K, tuple[str, tuple[IPAddress, IPAddress, int, int | None]]]
    ) -> tuple[dict[K, Reach], dict[K, str]]:
        """Ask for many reaches; as `ask`."""
        return self.ask("reach", questions, ASK_S + _REACH_S * (1 + len(self._actors) // _AT_ONCE))

    def clock(self, host: str) -> ClockReading | None:
        """Read a host's clock; None without an answer."""
        sent_s = time.time()
        answers, _ = self.ask("clock", {host: (host, ())})
        return ClockReading(sent_s, answers[host], time.time()) if host in answers else None


@contextlib.contextmanager
def running_probes(nodes: Mapping[str, Node]) -> Iterator[Probes]:
    """A probe on each host; whether it came up shows when it is asked."""
    actors = {
        host: _ProbeActor.options(
            num_cpus=0,
            max_concurrency=_AT_ONCE,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        ).remote()
        for host, node in nodes.items()
    }
    try:
        yield Probes(actors)
    finally:
        for actor in actors.values():
            with contextlib.suppress(RayError):
                ray.kill(actor)


def gather(asked: Mapping[K, Any], timeout_s: float) -> tuple[dict[K, Any], dict[K, str]]:
    """Wait for Ray's answers; those that came in time, and the reasons of the others."""
    answers: dict[K, Any] = {}
    reasons: dict[K, str] = {}
    deadline = time.monotonic() + timeout_s
    for key, reference in asked.items():
        try:
            answers[key] = ray.get(reference, timeout=max(0.1, deadline - time.monotonic()))
        except GetTimeoutError:
            reasons[key] = f"no answer within {timeout_s:.0f} s"
        except RayTaskError as error:
            reasons[key] = " ".join(str(error.cause).split())[:300]
        except RayError as error:
            reasons[key] = str(error).strip().splitlines()[-1].strip()[:300]
    return answers, reasons
