"""A router's interface that loses packets; see drop.c."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from msl.net.compiler import compile_source, load_program
from msl.net.sfc.proxy import interface_index
from tests.net.chain import Chains

_INGRESS = 0xFFFFFFF2


class Losses:
    """What has come and gone so far.

    Args:
        every: one of so many packets is lost.
        longer: only packets that are longer count.
    """

    def __init__(self, every: int, longer: int) -> None:
        self._module = compile_source(Path(__file__).with_name("drop.c"), {"EVERY": every, "LONGER": longer})
        self._program = load_program(self._module, "lose")

    @property
    def seen(self) -> int:
        return self._count(0)

    @property
    def lost(self) -> int:
        return self._count(1)

    @property
    def single(self) -> int:
        """Packets of one segment."""
        return self._count(2)

    def attach(self, interface: str) -> None:
        with IPRoute() as netlink:
            index = interface_index(netlink, interface)
            netlink.tc("add", "clsact", index=index)
            where: dict[str, Any] = {"parent": _INGRESS, "prio": 1, "handle": 1, "protocol": 3}
            netlink.tc("add-filter", "bpf", index=index, fd=self._program, name="lose", direct_action=True, **where)

    def _count(self, which: int) -> int:
        table = self._module[b"counts"]
        return int(table[table.Key(which)].value)


@contextlib.contextmanager
def losing(chains: Chains, router: str, every: int, longer: int) -> Iterator[Losses]:
    """Let a router lose packets from all hosts, until its interfaces lose the program."""
    losses = Losses(every, longer)
    interfaces = [f"h{index}" for index in range(len(chains.domain.hosts))]
    for interface in interfaces:
        chains.inside(router, lambda interface=interface: losses.attach(interface))  # type: ignore[misc]
    try:
        yield losses
    finally:
        for interface in interfaces:
            chains.inside(router, lambda interface=interface: _detach(interface))  # type: ignore[misc]


def _detach(interface: str) -> None:
    with IPRoute() as netlink:
        netlink.tc("del", "clsact", index=interface_index(netlink, interface))
