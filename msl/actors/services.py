"""The services that this user has started on this machine, each with a record that other commands find it by."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from msl.actors import local
from msl.errors import ClusterError
from msl.net import namespace
from msl.net.fabric import Endpoint
from msl.plan import Plan

if TYPE_CHECKING:
    from msl.actors.cluster import Session  # Ray: not before the network is entered

_STOP_S = 30.0


@dataclass(frozen=True)
class ServiceRecord:
    """A service that is ready."""

    name: str
    """The job's name, which clients say in their HELLO."""
    address: str
    port: int
    fabric: str
    pid: int
    """The process of `msl serve`."""
    started: float
    """When that process was started, in seconds since the epoch; it tells it from a later one with its number."""
    cluster: str
    source: str
    """Host from which the service is reached."""
    enter: int
    """A process in that host's network; 0 if it is the machine's own."""
    checkpoint: str

    @property
    def alive(self) -> bool:
        """Whether its process still runs."""
        with contextlib.suppress(psutil.Error):
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
        return False


def record_of(name: str, plan: Plan, cluster: Session, endpoint: Endpoint, weights: Path) -> ServiceRecord:
    """The record of a service of this process.

    Args:
        name: of the service.
        plan: of its chain.
        cluster: that it runs on.
        endpoint: where clients connect to, from the source's host.
        weights: the run or checkpoint that they come from.
    """
    source = plan.source.place.host
    enter = 0
    local_one = cluster.cluster
    if local_one is not None and (local_one.private or local_one.testbed):
        enter = next(host.pid for host in local_one.hosts if host.name == source)
    return ServiceRecord(
        name,
        endpoint.address,
        endpoint.port,
        plan.fabric,
        os.getpid(),
        float(psutil.Process().create_time()),
        local_one.name if local_one is not None else "existing",
        source,
        enter,
        str(weights.resolve()),
    )


def records_folder() -> Path:
    """Where the records lie."""
    return local.home() / "services"


def _path(name: str) -> Path:
    return records_folder() / f"{name}.json"


def claim(name: str) -> None:
    """Make sure that no service of that name runs.

    Raises:
        ClusterError: one does.
    """
    found = find(name)
    if found is not None:
        raise ClusterError(f"the service {name!r} runs already (process {found.pid}); 'msl down' ends it")


def publish(record: ServiceRecord) -> None:
    """Let others find a service."""
    folder = records_folder()
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    temporary = folder / f".{record.name}.new"
    temporary.write_text(json.dumps(asdict(record), indent=1))
    temporary.replace(_path(record.name))


def tell(name: str, figures: dict[str, Any]) -> None:
    """Let others see how a service does."""
    path = records_folder() / f"{name}.figures"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(figures))
    temporary.replace(path)


def figures(name: str) -> dict[str, Any]:
    """How a service does, as it told last; empty if it has told nothing yet."""
    with contextlib.suppress(OSError, ValueError):
        told: dict[str, Any] = json.loads((records_folder() / f"{name}.figures").read_text())
        return told
    return {}


def withdraw(name: str) -> None:
    """Remove a service's record."""
    for path in (_path(name), records_folder() / f"{name}.figures"):
        path.unlink(missing_ok=True)
    for folder in (records_folder(), records_folder().parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


def find(name: str) -> ServiceRecord | None:
    """The running service of that name; the record of one that is gone is removed."""
    try:
        record = ServiceRecord(**json.loads(_path(name).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(f"{_path(name)}: cannot be read ({error}); remove it if no service is running") from error
    if record.alive:
        return record
    withdraw(name)
    return None


def running() -> list[ServiceRecord]:
    """All services of this user that run."""
    found = [find(path.stem) for path in sorted(records_folder().glob("*.json"))]
    return [record for record in found if record is not None]


def enter_network(record: ServiceRecord) -> None:
    """Move this process to where a service is reached; before it starts threads."""
    if record.enter:
        namespace.join(record.enter)


def stop(record: ServiceRecord) -> bool:
    """End a service in order; False if it had to be killed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while record.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    ended = not record.alive
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)
    withdraw(record.name)
    return ended
