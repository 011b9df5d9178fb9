"""Message sizes as they are written: `64KiB` on a command line, `64 KiB` in a table, `64kib` in a name."""

from __future__ import annotations

import re

from msl.errors import ConfigError

LARGEST = 256 * 2**20
_UNITS = {"KiB": 2**10, "MiB": 2**20}
_SIZE = re.compile(r"(\d{1,6})\s*(KiB|MiB)", re.IGNORECASE)


def parse_sizes(text: str) -> list[int]:
    """Bytes of each size of a list like `64KiB,1MiB`, in rising order.

    Raises:
        ConfigError: not a list of sizes, or one that is 0 or above `LARGEST` bytes.
    """
    sizes = set()
    for part in text.split(","):
        found = _SIZE.fullmatch(part.strip())
        if found is None:
            raise ConfigError(f"--sizes {text}: {part!r} is no size; write a list like 64KiB,1MiB,32MiB")
        unit = next(unit for unit in _UNITS if unit.lower() == found[2].lower())
        sizes.add(int(found[1]) * _UNITS[unit])
    if 0 in sizes or max(sizes) > LARGEST:
        raise ConfigError(f"--sizes {text}: sizes from 1KiB to {show(LARGEST).replace(' ', '')} are possible")
    return sorted(sizes)


def show(num_bytes: int) -> str:
    """A whole number of KiB or MiB, e.g. `64 KiB`."""
    unit = "MiB" if num_bytes % _UNITS["MiB"] == 0 else "KiB"
    return f"{num_bytes // _UNITS[unit]} {unit}"


def name(num_bytes: int) -> str:
    """The size as part of a name, e.g. `64kib`."""
    return show(num_bytes).replace(" ", "").lower()
