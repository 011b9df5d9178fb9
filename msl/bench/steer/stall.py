"""How long a stream pauses when its path changes under full load."""

from __future__ import annotations

import time

from msl.bench.calls import actors
from msl.bench.result import Sample
from msl.bench.steer.field import Field
from msl.bench.steer.stream import Pause, Stream, longest

FULL_LINKS, FULL_CORES = "full_links", "full_cores"
RATES: dict[str, int | None] = {FULL_LINKS: 200, FULL_CORES: 10_000}
"""Mbit/s of the links: those of a chain that fills them, and more than the machine can fill."""
CHANGED, UNCHANGED = "changed", "unchanged"
_WINDOW_S = 0.15
"""A pause within so long of a change counts as its."""
_APART_S = 0.25
_SETTLE_S = 2.0


def measure(field: Field, case: str, changes: int, first_round: int) -> tuple[list[Sample], dict[str, int]]:
    """Change the path again and again, and look at the windows after each change and between.

    Returns:
        The longest pause of each window in ms, and what TCP has counted meanwhile.

    Raises:
        NetworkError: a byte was wrong, or the connection broke.
    """
    with field.chain(RATES[case]) as (chain, agents), actors() as started:
        stream = Stream(field.session, started, chain, field.places)
        time.sleep(_SETTLE_S)
        stream.pauses()
        before = field.counters()
        windows: list[tuple[str, float]] = []
        pauses: list[Pause] = []
        for index in range(changes):
            windows.append((UNCHANGED, time.monotonic()))
            time.sleep(_APART_S)
            begin = time.monotonic()
            windows.append((CHANGED, begin))
            field.lead(agents, chain, "r1" if index % 2 else "r2", urgent=True)
            time.sleep(max(0.0, _APART_S - (time.monotonic() - begin)))
            if index % 20 == 19:
                pauses += stream.pauses()
        time.sleep(_WINDOW_S)
        pauses += stream.pauses()
        moved = stream.check()
        after = field.counters()
        samples = [
            Sample(first_round + index // 2, index % 2, case, side, 1e3 * longest(pauses, begin, begin + _WINDOW_S))
            for index, (side, begin) in enumerate(windows)
        ]
        counted = {
            "timeouts": after.since(before, "TCPTimeouts"),
            "resets": after.since(before, "OutRsts") + after.since(before, "EstabResets"),
            "paws": after.since(before, "PAWSEstab"),
            "mib": moved >> 20,
        }
        stream.end()
    return samples, counted
