"""Message sizes as they are written: `64KiB` on a command line, `64 KiB` in a table, `64kib` in a name; bytes as `64B`,
`64 B` and `64`."""

from __future__ import annotations

import re

from msl.errors import ConfigError

LARGEST = 256 * 2**20
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20}
_SIZE = re.compile(r"(\d{1,6})\s*(B|KiB|MiB)", re.IGNORECASE)
_MULTIPLE = 4
"""Messages are float32 tensors."""


def parse_sizes(text: str, smallest: int = 2**10) -> list[int]:
    """Bytes of each size of a list like `64B,64KiB,1MiB`, in rising order.

    Args:
        text: the list.
        smallest: bytes of the smallest size that is possible.

    Raises:
        ConfigError: not a list of sizes, or one out of range or not a multiple of 4 bytes.
    """
    sizes = set()
    for part in text.split(","):
        found = _SIZE.fullmatch(part.strip())
        if found is None:
            raise ConfigError(f"--sizes {text}: {part!r} is no size; write a list like 64KiB,1MiB,32MiB")
        unit = next(unit for unit in _UNITS if unit.lower() == found[2].lower())
        sizes.add(int(found[1]) * _UNITS[unit])
    if min(sizes) < smallest or max(sizes) > LARGEST:
        bounds = " to ".join(show(bound).replace(" ", "") for bound in (smallest, LARGEST))
        raise ConfigError(f"--sizes {text}: sizes from {bounds} are possible")
    if odd := [size for size in sizes if size % _MULTIPLE]:
        raise ConfigError(f"--sizes {text}: {odd[0]}B is no multiple of {_MULTIPLE} bytes, which a float32 has")
    return sorted(sizes)


def show(num_bytes: int) -> str:
    """A whole number of B, KiB or MiB, e.g. `64 KiB`."""
    unit = next(unit for unit in reversed(_UNITS) if num_bytes % _UNITS[unit] == 0)
    return f"{num_bytes // _UNITS[unit]} {unit}"


def name(num_bytes: int) -> str:
    """The size as part of a name, e.g. `64kib`; plain bytes as a number, e.g. `64`."""
    return show(num_bytes).replace(" ", "").lower() if num_bytes % _UNITS["KiB"] == 0 else str(num_bytes)
