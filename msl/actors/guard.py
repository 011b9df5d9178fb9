"""Ends a local cluster whose driver has died without doing so: killed, or ended by Ray itself.

The guard is a process of its own, which waits for the end of a pipe that only the driver holds open. Ray ends a driver
at once, without unwinding, when it calls a raylet that is gone.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

_STOP_S = 10.0


@contextlib.contextmanager
def guarded(cluster: str) -> Iterator[None]:
    """Have a cluster ended if this process dies while the body runs.

    Args:
        cluster: its name.
    """
    command = [sys.executable, "-m", "msl.actors.guard", cluster]
    # In a session of its own: Ctrl-C is for the driver, which then ends the cluster itself.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(b"done")
            process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(cluster: str) -> None:
    """Wait for the driver's end; then, if it has not said that it is done, end its cluster."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read():
        return
    from msl.actors import local, runs  # only now: a guard that has nothing to do costs nothing

    found = local.find(cluster)
    if found is not None and found.keeper:
        local.stop(found)
    local.remove_testbed(cluster)
    runs.running()  # removes the records of those that are gone


if __name__ == "__main__":
    main(sys.argv[1])
