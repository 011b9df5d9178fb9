"""Named network namespaces, as `ip netns` knows them: make, enter and delete them, and tell whose they are.

Who made a namespace must be told from the namespace alone, for whoever cleans up after a crash has nothing else. So
it carries a mark, and no name ever appears without one: the alias of its loopback is set while it has no name yet,
and the file that its name is mounted on appears together with its text, the same mark. (That file is all there is if
the process dies before the mount or between unmount and removal, or the machine restarts on a persistent /run.)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import TypeVar

from pyroute2 import IPRoute

from msl.errors import ClusterError

T = TypeVar("T")

_RUN = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SHARED = 0x100000
_MNT_DETACH = 2
_LOOPBACK = 1
"""Its interface index in every namespace."""
_libc = ctypes.CDLL(None, use_errno=True)


class NoNetnsError(ClusterError):
    """There is no namespace of that name."""


def netns_path(netns: str) -> Path:
    """The file that a named network namespace is mounted on."""
    return _RUN / netns


def named(prefix: str) -> list[str]:
    """Names that begin with a prefix, be they mounted or not."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path.name for path in _RUN.iterdir() if path.name.startswith(prefix))
    return []


def is_mounted(netns: str) -> bool:
    """Whether the name stands for a namespace: it exists, and is not merely a file that was left behind."""
    with contextlib.suppress(FileNotFoundError):
        return netns_path(netns).stat().st_dev != _RUN.stat().st_dev
    return False


def mark_of(netns: str) -> str | None:
    """The mark that `create` left, of a name that is not mounted as well; None if there is none or no such name."""
    try:
        if is_mounted(netns):
            return inside(netns, _read_mark)
        return netns_path(netns).read_text(errors="replace") or None
    except (FileNotFoundError, NoNetnsError):
        return None


def inside(netns: str, call: Callable[[], T]) -> T:
    """Run `call` in a fresh thread that has entered the named namespace.

    Sockets, `IPRoute` objects and child processes made there belong to the namespace, also after the thread's end;
    so do files opened below /proc/sys/net. (A child that asks for a signal at its parent's death gets it when this
    thread ends, that is, at once.) An interrupt is raised as soon as `call` is done, a second one immediately.

    Returns:
        What `call` returns.

    Raises:
        NoNetnsError: there is no such namespace.
        Exception: whatever `call` raises.
    """

    def enter_and_call() -> T:
        try:
            descriptor = os.open(netns_path(netns), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NoNetnsError(f"no network namespace {netns}") from None
        try:
            _check(_libc.setns(descriptor, _CLONE_NEWNET))
        finally:
            os.close(descriptor)
        return call()

    return _in_thread(enter_and_call)


def create(netns: str, mark: str) -> None:
    """Make a namespace with a name and a mark; its loopback is up.

    Raises:
        FileExistsError: the name is taken; nothing was changed.
        OSError: the system does not allow it; nothing stays.
    """

    def make() -> None:
        _check(_libc.unshare(_CLONE_NEWNET))
        with IPRoute() as netlink:
            netlink.link("set", index=_LOOPBACK, ifalias=mark, state="up")
        _give_name(netns, mark)

    # pyroute2.netns.create forks, which takes long in a large process; a thread does as well.
    _in_thread(make)


def delete(netns: str) -> None:
    """Remove the name; the namespace goes with the last process and socket in it."""
    path = netns_path(netns)
    if _libc.umount2(os.fsencode(path), _MNT_DETACH) and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        _check(-1)
    path.unlink(missing_ok=True)


def _give_name(netns: str, mark: str) -> None:
    _RUN.mkdir(mode=0o755, exist_ok=True)
    folder = os.open(_RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # `ip netns add` takes the same lock: of two that find the folder not shared, each would mount it on itself.
        fcntl.flock(folder, fcntl.LOCK_EX)
        _share_folder()
        _write_marked_file(folder, netns, mark)
        try:
            _check(_libc.mount(b"/proc/thread-self/ns/net", os.fsencode(netns_path(netns)), b"none", _MS_BIND, None))
        except OSError:
            netns_path(netns).unlink()
            raise
    finally:
        os.close(folder)


def _share_folder() -> None:
    """As `ip netns` does: what is mounted in the folder is seen in all mount namespaces, and unmounted in all."""
    path = os.fsencode(_RUN)
    if _libc.mount(b"", path, b"none", _MS_SHARED | _MS_REC, None):
        # Not a mount of its own yet.
        _check(_libc.mount(path, path, b"none", _MS_BIND | _MS_REC, None))
        _check(_libc.mount(b"", path, b"none", _MS_SHARED | _MS_REC, None))


def _write_marked_file(folder: int, name: str, text: str) -> None:
    # Written without a name and linked then, the file is never seen without its text; and link(2) refuses a name
    # that is taken. Python passes AT_SYMLINK_FOLLOW, which /proc/self/fd needs, only if a folder is given. The path is
    # absolute all the same: the folder was opened before it was perhaps mounted on itself, and names the old mount.
    unnamed = os.open(_RUN, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o444)
    try:
        os.write(unnamed, text.encode())
        os.link(f"/proc/self/fd/{unnamed}", netns_path(name), dst_dir_fd=folder)
    finally:
        os.close(unnamed)


def _read_mark() -> str | None:
    with IPRoute() as netlink:
        alias: str | None = netlink.link("get", index=_LOOPBACK)[0].get_attr("IFLA_IFALIAS")
    return alias


def _in_thread(call: Callable[[], T]) -> T:
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    try:
        Thread(target=run, name="msl-netns", daemon=True).start()
        wait([future])
    except BaseException:
        # Who cleans up after an interrupt must not do so while the thread makes things, or is about to.
        if not future.cancel():
            wait([future])
        raise
    return future.result()


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
