"""Ctrl-C and SIGTERM: the first one ends the command in order, later ones do not disturb the end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class StopRequestedError(Exception):
    """The user asked to stop; the message is the signal's name."""


@contextlib.contextmanager
def orderly_stop(say: Callable[[str], None]) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `StopRequestedError`; answer later ones with a line.

    On the way out the body sees a KeyboardInterrupt, the one exception that Ray's own waits let through.
    """
    asked: str | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            say("stopping already; what is running is being ended")
            return
        asked = signal.Signals(number).name
        raise KeyboardInterrupt

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        raise StopRequestedError(asked or "SIGINT") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
