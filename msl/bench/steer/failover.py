"""How long a chain makes no progress when the plane that it uses fails, with a controller of default settings."""

from __future__ import annotations

import time

from msl.actors.controller import Watcher
from msl.bench.calls import actors
from msl.bench.result import Sample
from msl.bench.steer.field import Field
from msl.bench.steer.stream import Stream, longest
from msl.errors import NetworkError
from msl.net.faults import FAULTS, fault
from msl.net.sfc.report import ChangeReport

RATE_MBIT = 200
_SETTLE_S = 2.0
_FAILED_S = 3.0
_HOST = 1
"""The host whose link is concerned, if it is one: that of the first NSF."""
PAUSE, DETECTED = "pause_s", "path_changed_s"


def measure(field: Field, rounds: int) -> dict[str, list[Sample]]:
    """Let each fault happen once a round.

    Returns:
        By quantity: the pause at the ends of a stream, and when the path had changed, in seconds after the fault.

    Raises:
        NetworkError: the chain did not recover.
    """
    found: dict[str, list[Sample]] = {PAUSE: [], DETECTED: []}
    changes: list[ChangeReport] = []
    with field.chain(RATE_MBIT) as (chain, agents), actors() as started:
        stream = Stream(field.session, started, chain, field.places)
        with field.controlled(agents, chain, Watcher(field.say, changed=changes.append)):
            time.sleep(_SETTLE_S)
            for turn in range(rounds):
                for place, kind in enumerate(FAULTS):
                    field.lead(agents, chain, "r1")  # by hand: the controller leaves it alone while it is alive
                    time.sleep(_SETTLE_S)
                    stream.pauses()
                    changes.clear()
                    begin, begin_epoch = time.monotonic(), time.time()
                    with fault(field.testbed, "r1", kind, _HOST):
                        time.sleep(_FAILED_S)
                        if not changes:
                            raise NetworkError(f"{kind}: the path has not changed within {_FAILED_S:g} s")
                        pauses = stream.pauses()
                    stream.check()
                    pause_s = longest(pauses, begin, begin + _FAILED_S)
                    changed_s = changes[0].at - begin_epoch
                    found[PAUSE].append(Sample(turn, place, kind, "steered", pause_s))
                    found[DETECTED].append(Sample(turn, place, kind, "steered", changed_s))
                    field.say(f"failover {turn + 1}/{rounds}: {kind}: {pause_s:.2f} s without progress")
        stream.end()
    return found
