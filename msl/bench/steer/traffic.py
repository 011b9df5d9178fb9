"""Cross-traffic that fills one plane: iperf3 between the hosts, both ways, over several TCP connections.

UDP that is sent faster than the links carry would leave nothing to a chain that stays: its large packets find a full
queue each time, and the run ends with an error.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator

from msl.errors import ConfigError, NetworkError
from msl.net.netns import netns_path
from msl.net.testbed import Testbed
from msl.plan import DomainPlan

_PORT = 5301
_CONNECTIONS = 8
"""Of each pair of hosts, each way: a chain that stays gets a ninth."""
_FOR_EVER_S = 86_400


def require() -> None:
    """Check that iperf3 is there.

    Raises:
        ConfigError: it is not.
    """
    if shutil.which("iperf3") is None:
        raise ConfigError("iperf3 is not installed; install it, or leave this part out: --only stall,failover,...")


@contextlib.contextmanager
def filled(testbed: Testbed, domain: DomainPlan) -> Iterator[None]:
    """Fill the plane that the hosts' routes lead through (the first one) while the body runs.

    Pairs of hosts send to each other, so that each host's link is full both ways.

    Raises:
        NetworkError: iperf3 does not run.
    """
    require()
    running: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(0, len(testbed.hosts) - 1, 2):
            server, client = testbed.hosts[index], testbed.hosts[index + 1]
            address = str(domain.host(server.name).address)
            running.append(_start(server.netns, ["--server", "--one-off", "--port", str(_PORT)]))
            time.sleep(0.3)
            options = ["--client", address, "--port", str(_PORT), "--bidir", "--parallel", str(_CONNECTIONS)]
            options += ["--time", str(_FOR_EVER_S)]
            running.append(_start(client.netns, options))
        _await(running)
        yield
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2.0)
            if process.poll() is None:
                process.kill()
                process.wait()


def _start(there: str, options: list[str]) -> subprocess.Popen[bytes]:
    command = ["nsenter", f"--net={netns_path(there)}", "iperf3", *options]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)


def _await(running: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        for process in running:
            if process.poll() is not None:
                raise NetworkError(f"iperf3 ended with {process.returncode}")
        time.sleep(0.05)
