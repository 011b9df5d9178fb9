"""What the options of `msl bench msi` ask for."""

from __future__ import annotations

from dataclasses import dataclass

from msl.bench.options import parse_numbers, parse_parts

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
    parts = parse_parts(only, PARTS)
    asked = parse_numbers("--nsfs", nsfs, _MOST_NSFS) if nsfs is not None else None
    return Wanted(
        parts,
        parse_numbers("--batches", batches, _MOST_SAMPLES),
        (asked or _NSFS) if {"latency", "where"} & set(parts) else (),
        (asked or _GROWING) if "growth" in parts else (),
        parse_numbers("--clients", clients, _MOST_CLIENTS),
        rounds,
    )
