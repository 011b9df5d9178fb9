"""Processes that a local cluster started, found by a mark in their environment, also after a crash."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

import psutil

MARK = "MSL_CLUSTER"
"""Environment variable that every process of a cluster inherits; its value is the cluster's random id."""


def owned_by(cluster_id: str) -> list[psutil.Process]:
    """All living processes that carry the mark of a cluster."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and _carries(process, cluster_id):
                found.append(process)
    return found


def is_alive(pid: int, cluster_id: str) -> bool:
    """Whether a process lives and is the cluster's own (not another one that got its number)."""
    with contextlib.suppress(psutil.Error):
        return _carries(psutil.Process(pid), cluster_id)
    return False


def _carries(process: psutil.Process, cluster_id: str) -> bool:
    return process.environ().get(MARK) == cluster_id and process.status() != psutil.STATUS_ZOMBIE


def end(cluster_id: str, first: Sequence[int], timeout_s: float) -> int:
    """End all processes of a cluster: the named ones in order, whatever is left at the deadline by force.

    Args:
        cluster_id: whose processes.
        first: processes that end their children themselves when asked to.
        timeout_s: time for an orderly end.

    Returns:
        How many had to be killed.
    """
    for pid in first:
        if is_alive(pid, cluster_id):
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).terminate()
    deadline = time.monotonic() + timeout_s
    while (left := owned_by(cluster_id)) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=min(0.2, max(0.0, deadline - time.monotonic())))
    killed = 0
    # Killed processes may have started others in between: look until there is none.
    for _ in range(10):
        left = owned_by(cluster_id)
        if not left:
            break
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
                killed += 1
        psutil.wait_procs(left, timeout=1.0)
    return killed
