"""What the options of `msl bench msi` ask for."""

from __future__ import annotations

from dataclasses import dataclass

from msl.errors import ConfigError

PARTS = ("latency", "where", "growth")
_MOST_NSFS, _MOST_SAMPLES, _MOST_CLIENTS = 16, 4096, 512
_NSFS, _GROWING = (1, 2, 3, 4), tuple(range(1, 9))


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    parts: tuple[str, ...]
    batches: tuple[int, ...]
    """Samples of a request, in rising order; of the parts `latency` and `where`."""
    nsfs: tuple[int, ...]
    """Numbers of NSFs between client and sink for the same parts, in rising order; none without them."""
    growing: tuple[int, ...]
    """The same for the part `growth`."""
    clients: tuple[int, ...]
    """Numbers of clients of that part, in rising order."""
    rounds: int
    """How often, after one round that is not counted."""

    @property
    def lengths(self) -> list[int]:
        """All numbers of NSFs, in rising order."""
        return sorted({*self.nsfs, *self.growing})


def parse_wanted(only: str, batches: str, nsfs: str | None, clients: str, rounds: int) -> Wanted:
    """What the options of the command line ask for; without `nsfs`, each part has its own numbers of NSFs.

    Raises:
        ConfigError: an option cannot be read.
    """
    parts = _parts(only)
    asked = parse_numbers("--nsfs", nsfs, _MOST_NSFS) if nsfs is not None else None
    return Wanted(
        parts,
        parse_numbers("--batches", batches, _MOST_SAMPLES),
        (asked or _NSFS) if {"latency", "where"} & set(parts) else (),
        (asked or _GROWING) if "growth" in parts else (),
        parse_numbers("--clients", clients, _MOST_CLIENTS),
        rounds,
    )


def parse_numbers(option: str, text: str, most: int) -> tuple[int, ...]:
    """The numbers of a list like `1,2,4`, in rising order.

    Raises:
        ConfigError: not a list of numbers from 1 to `most`.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= most for part in parts):
        raise ConfigError(f"{option} {text}: write numbers from 1 to {most}, like 1,2,4")
    return tuple(sorted({int(part) for part in parts}))


def _parts(text: str) -> tuple[str, ...]:
    asked = [part.strip() for part in text.split(",")]
    for part in asked:
        if part not in PARTS:
            raise ConfigError(f"--only {text}: {part!r} is no part; there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in asked)
