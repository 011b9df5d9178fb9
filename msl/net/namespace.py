"""A network namespace of its own for the local cluster, so that nothing of it can be reached from outside.

Ray listens on all interfaces of its network namespace unless a node's address is 127.0.0.1 itself, which all
nodes would have to share. In a namespace whose only interface is loopback, "all interfaces" is harmless.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from pathlib import Path

from pyroute2 import IPRoute

from msl.errors import ClusterError

_CLONE_NEWUSER = 0x10000000
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_CLONE_NEWNET = 0x40000000


def isolate() -> str | None:
    """Move this process into a new network namespace with nothing but loopback.

    Must be called before the process starts threads. Without root, a user namespace of its own gives the right
    to do so; files keep their owner.

    Returns:
        None, or why the system does not allow it (nothing was changed then).
    """
    _require_one_thread()
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    rooted = may_manage_networks()
    if libc.unshare(_CLONE_NEWNET if rooted else _CLONE_NEWNET | _CLONE_NEWUSER):
        need = "the capability CAP_SYS_ADMIN" if rooted else "unprivileged user namespaces"
        return f"{os.strerror(ctypes.get_errno())} ({need} would be needed)"
    if not rooted:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    with IPRoute() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname="lo")[0], state="up")
    return None


def join(pid: int) -> None:
    """Move this process into the namespaces of another one; before it starts threads.

    Raises:
        ClusterError: the process is gone, or belongs to somebody else.
    """
    _require_one_thread()
    libc = ctypes.CDLL(None, use_errno=True)
    for name, kind in (("user", _CLONE_NEWUSER), ("net", _CLONE_NEWNET)):
        try:
            wanted = Path(f"/proc/{pid}/ns/{name}")
            if wanted.readlink() == Path(f"/proc/self/ns/{name}").readlink():
                continue
            descriptor = os.open(wanted, os.O_RDONLY)
        except OSError as error:
            raise ClusterError(f"cannot enter the network of process {pid}: {error.strerror}") from error
        try:
            if libc.setns(descriptor, kind):
                reason = os.strerror(ctypes.get_errno())
                raise ClusterError(f"cannot enter the network of process {pid}: {reason}")
        finally:
            os.close(descriptor)


def enter(path: Path) -> None:
    """Move this process into a named network namespace; before it starts threads.

    Raises:
        ClusterError: the namespace is gone, or the right to enter it is missing.
    """
    _require_one_thread()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ClusterError(f"cannot enter the network {path.name}: {error.strerror}") from error
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
            raise ClusterError(f"cannot enter the network {path.name}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def may_manage_networks() -> bool:
    """Whether this process may set up a network namespace as it is; root in a container may not."""
    status = Path("/proc/self/status").read_text()
    effective = int(re.findall(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)[0], 16)
    return all(effective >> bit & 1 for bit in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


def _require_one_thread() -> None:
    # A namespace belongs to a thread: threads that exist already would stay outside.
    if threading.active_count() != 1:
        raise ClusterError("the network namespace must be entered before the process starts threads")
