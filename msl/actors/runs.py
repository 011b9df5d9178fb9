"""The steered chains that this user runs on this machine, each with a record that other commands find it by.

This module imports neither torch nor Ray: a command reads the record, and then enters the network that it names.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from msl.actors import local
from msl.config import Config, to_yaml
from msl.errors import ClusterError
from msl.plan import ChainPlan

if TYPE_CHECKING:
    from msl.actors.cluster import Session  # Ray: not before the network is entered


@dataclass(frozen=True)
class RunRecord:
    """A chain that runs."""

    job: str
    folder: str
    """Of the run; empty if it has none."""
    chain: int
    """Number of the chain in its SR domain."""
    pid: int
    """The process that drives it."""
    started: float
    """When that process was started, in seconds since the epoch; it tells it from a later one with its number."""
    cluster: str
    """Name of its local cluster; empty on an existing one."""
    config: str
    """Its configuration, as YAML."""

    @property
    def alive(self) -> bool:
        """Whether its process still runs."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.started) < 1.0
        return False

    @property
    def name(self) -> str:
        """How people call it."""
        return self.folder or self.job


def record_of(config: Config, session: Session, chain: ChainPlan, folder: Path | None) -> RunRecord:
    """The record of a chain that this process drives."""
    return RunRecord(
        config.name,
        str(folder.resolve()) if folder is not None else "",
        chain.number,
        os.getpid(),
        float(psutil.Process().create_time()),
        session.cluster.name if session.cluster is not None else "",
        to_yaml(config),
    )


@contextlib.contextmanager
def published(record: RunRecord) -> Iterator[None]:
    """Let others find a chain while the body runs."""
    folder = records_folder()
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{record.pid}-{record.chain}.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
    temporary.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _remove_empty()


def running() -> list[RunRecord]:
    """All chains of this user that run; records of those that are gone are removed."""
    found = []
    for path in sorted(records_folder().glob("*.json")):
        try:
            record = RunRecord(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(f"{path}: cannot be read ({error}); remove it if no chain is running") from error
        if record.alive:
            found.append(record)
        else:
            path.unlink(missing_ok=True)
    if not found:
        _remove_empty()
    return found


def find(name: str | None) -> RunRecord:
    """A running chain, by its run's folder or its job's name; without a name the only one.

    Raises:
        ClusterError: there is none, or more than one.
    """
    found = running()
    if name is not None:
        folder = str(Path(name).resolve())
        found = [record for record in found if record.folder == folder or record.job == name]
    if len(found) == 1:
        return found[0]
    if not found:
        others = ", ".join(record.name for record in running()) or "none"
        what = f"no running chain {name!r} over the fabric sfc" if name is not None else "no chain is running over sfc"
        raise ClusterError(f"{what}; there are: {others}")
    names = ", ".join(f"{record.name} (process {record.pid})" for record in found)
    raise ClusterError(f"several chains are running; name one of them: {names}")


def _remove_empty() -> None:
    for empty in (records_folder(), records_folder().parent):
        with contextlib.suppress(OSError):
            empty.rmdir()


def records_folder() -> Path:
    """Where the records lie."""
    return local.home() / "runs"
