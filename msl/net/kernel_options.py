"""Which options of the running kernel msl needs: read from its configuration or, where that is hidden, tried out."""

from __future__ import annotations

import ctypes
import gzip
import os
import platform
import re
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

from pyroute2 import IPRoute, NetlinkError

NEEDED = {
    "BPF_SYSCALL": "programs and maps",
    "BPF_JIT": "programs at speed",
    "NET_CLS_ACT": "programs on ingress and egress",
    "NET_SCH_INGRESS": "programs on ingress and egress",
    "NET_CLS_BPF": "programs on ingress and egress",
    "IPV6_SEG6_LWTUNNEL": "segment lists of the head-end",
    "IPV6_MULTIPLE_TABLES": "delivery to transparent sockets",
}
"""Options that every host needs, and what for."""

NEEDED_BY_TESTBED = {"VETH": "links of the testbed", "NET_SCH_TBF": "rates of the testbed's links"}
"""Options that the built-in testbed needs beyond those."""

_CLONE_NEWNET = 0x40000000
_LOOPBACK = 1
"""Its interface index in every namespace."""


def configuration() -> str:
    """Text of the running kernel's configuration, "" where the system does not show it."""
    try:
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    except OSError:
        pass
    try:
        return Path(f"/boot/config-{platform.release()}").read_text(encoding="utf-8")
    except OSError:
        return ""


def missing_in(configuration: str, options: Collection[str]) -> list[str]:
    """Those of `options` that are not set; modules (=m) are, as the kernel loads them on first use."""
    present = set(re.findall(r"^CONFIG_(\w+)=[ym]$", configuration, re.MULTILINE))
    return [name for name in options if name not in present]


def missing_in_trial(options: Collection[str]) -> list[str]:
    """Those of `options` that a trial shows to be missing. BPF_SYSCALL, NET_CLS_ACT and NET_CLS_BPF have none here.

    Raises:
        OSError: this process may not make network namespaces, so nothing was tried.
    """
    missing = in_new_namespace(_failed_trials)
    if not Path("/proc/sys/net/core/bpf_jit_enable").exists():
        missing.append("BPF_JIT")
    return [name for name in options if name in missing]


def in_new_namespace(call: Callable[[], list[str]]) -> list[str]:
    """What `call` returns in a network namespace of its own, which vanishes with what was made in it.

    A namespace belongs to a thread: this one takes it along when it ends, and no process is forked.

    Raises:
        OSError: this process may not make network namespaces.
    """
    future: Future[list[str]] = Future()

    def enter_and_call() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=enter_and_call, name="msl-trial", daemon=True).start()
    return future.result()


def _failed_trials() -> list[str]:
    """Make one of each kind in the namespace that this thread is in; its only interface is loopback."""
    segments = {"type": "seg6", "mode": "encap", "segs": ["fd00::2"]}
    with IPRoute() as netlink:
        trials: dict[str, Callable[[], object]] = {
            "VETH": lambda: netlink.link("add", ifname="a", kind="veth", peer="b"),
            "NET_SCH_INGRESS": lambda: netlink.tc("add", "clsact", _LOOPBACK),
            "NET_SCH_TBF": lambda: netlink.tc("add", "tbf", _LOOPBACK, rate="1mbit", burst=20_000, latency="50ms"),
            "IPV6_MULTIPLE_TABLES": lambda: netlink.rule("add", family=10, fwmark=1, table=100),
            "IPV6_SEG6_LWTUNNEL": lambda: netlink.route(
                "add", family=10, dst="fd00::1/128", oif=_LOOPBACK, encap=segments
            ),
        }
        netlink.link("set", index=_LOOPBACK, state="up")
        failed = []
        for name, trial in trials.items():
            try:
                trial()
            except NetlinkError:
                failed.append(name)
    return failed
