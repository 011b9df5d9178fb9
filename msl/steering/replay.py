"""Recorded telemetry in, decisions out: what a controller saw and did, and what it would do now with it.

A recording has one JSON document a line: first `begin` (chain, settings), then `reading`s and `decision`s in the order
in which they were made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path as File
from typing import Any, TextIO

from msl.errors import ConfigError
from msl.plan.paths import Path, Way
from msl.steering.decide import Decision
from msl.steering.readings import HostReading, reading_from
from msl.steering.watch import Beginning, Watch

VERSION = 1


@dataclass
class Recorder:
    """Writes a recording.

    Args:
        file: open for writing.
        beginning: what the controller begins with.
    """

    file: TextIO
    beginning: Beginning

    def __post_init__(self) -> None:
        self._write({"begin": {"version": VERSION, **asdict(self.beginning)}})

    def reading(self, reading: HostReading) -> None:
        """A reading has come."""
        self._write({"reading": reading.document()})

    def decision(self, now_s: float, decision: Decision) -> None:
        """A decision was made of what has come so far."""
        self._write({"decision": {"now_s": now_s, "path": asdict(decision.path)}})

    def moved(self, path: Path) -> None:
        """Somebody else has changed the path, or the change that was decided could not be made."""
        self._write({"moved": asdict(path)})

    def _write(self, document: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(document, separators=(",", ":")) + "\n")
        self.file.flush()


@dataclass(frozen=True)
class Replayed:
    """A decision made again."""

    now_s: float
    recorded: Path
    """The path that was decided on then."""
    decision: Decision
    """What is decided now."""

    @property
    def agrees(self) -> bool:
        """Whether it is the same path."""
        return self.recorded == self.decision.path


def replay(file: File, settings: Mapping[str, Any] | None = None) -> Iterator[Replayed]:
    """Make all decisions of a recording again, each from the path that was recorded before it.

    Args:
        file: the recording.
        settings: of the policy, instead of those that were recorded.

    Raises:
        ConfigError: it is no recording, or is cut off in the middle of a line.
    """
    watch: Watch | None = None
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            document = json.loads(line)
            if "begin" in document:
                watch = Watch(_beginning(document["begin"], settings or {}))
            elif watch is None:
                raise ValueError("it does not begin with `begin`")
            elif "reading" in document:
                watch.take(reading_from(document["reading"]))
            elif "moved" in document:
                watch.path = _path(document["moved"])
            else:
                decided = document["decision"]
                decision = watch.decide(float(decided["now_s"]))
                recorded = _path(decided["path"])
                watch.path = recorded
                yield Replayed(float(decided["now_s"]), recorded, decision)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}:{number}: not a recording of telemetry: {error}") from error


def _beginning(document: Mapping[str, Any], settings: Mapping[str, Any]) -> Beginning:
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']}, not {VERSION}")
    return Beginning(
        hops=tuple((a, b) for a, b in document["hops"]),
        path=_path(document["path"]),
        routers=tuple(document["routers"]),
        between=tuple((a, b, float(rate)) for a, b, rate in document["between"]),
        max_segments=int(document["max_segments"]),
        settings={**document["settings"], **settings},
    )


def _path(document: Mapping[str, Any]) -> Path:
    forward = tuple(_way(way) for way in document["forward"])
    return Path(forward, tuple(None if way is None else _way(way) for way in document["backward"]))


def _way(names: Any) -> Way:
    return tuple(str(name) for name in names)
