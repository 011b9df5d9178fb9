"""Ctrl-C and SIGTERM: the first one ends the command in order, later ones do not disturb the end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """The user asked to stop; not an Exception, so that nothing on the way takes it for a failure."""


@contextlib.contextmanager
def orderly_stop(say: Callable[[str], None]) -> Iterator[None]:
    """Raise `Stopped` in the main thread at the first SIGINT or SIGTERM; answer later ones with a line."""
    asked = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            say("stopping already; what is running is being ended")
            return
        asked = True
        raise Stopped(signal.Signals(number).name)

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def install() -> None:
        for number in before:
            signal.signal(number, stop)

    install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
