"""Lists in the options of benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from msl.errors import ConfigError


def parse_parts(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """The parts of a list like `rtt,bulk`, in the order in which they are measured.

    Raises:
        ConfigError: there is no such part.
    """
    asked = [part.strip() for part in text.split(",")]
    for part in asked:
        if part not in known:
            raise ConfigError(f"--only {text}: {part!r} is no part; there are {', '.join(known)}")
    return tuple(part for part in known if part in asked)


def parse_numbers(option: str, text: str, most: int) -> tuple[int, ...]:
    """The numbers of a list like `1,2,4`, in rising order.

    Raises:
        ConfigError: not a list of numbers from 1 to `most`.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= most for part in parts):
        raise ConfigError(f"{option} {text}: write numbers from 1 to {most}, like 1,2,4")
    return tuple(sorted({int(part) for part in parts}))
