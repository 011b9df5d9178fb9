"""Sends messages with a bounded number of them on their way; the same loop for every way to send."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

_FEWEST = 3
"""Messages of a sample, however long they take."""


class Passed(NamedTuple):
    """What went through a window."""

    messages: int
    seconds: float
    """From before the first message to after the last answer."""
    trips_s: list[float]
    """Of each message, from before it was sent to after its answer."""


def timed(messages: int, in_flight: int, send: Callable[[int], None], await_answer: Callable[[], None]) -> float:
    """Send so many messages, at most `in_flight` of which wait for their answer at any time.

    Args:
        messages: how many.
        in_flight: the window.
        send: sends the message of a number, from 0 on; may return before it is sent.
        await_answer: blocks until the receiver has answered its oldest message without an answer yet.

    Returns:
        Seconds from before the first message to after the last answer.
    """
    start = time.perf_counter()
    waiting = 0
    for number in range(messages):
        if waiting == in_flight:
            await_answer()
            waiting -= 1
        send(number)
        waiting += 1
    while waiting:
        await_answer()
        waiting -= 1
    return time.perf_counter() - start


def for_a_while(seconds: float, in_flight: int, send: Callable[[], None], await_answer: Callable[[], None]) -> Passed:
    """As `timed`, but as many messages as are begun within `seconds`.

    Args:
        seconds: after which no message is begun any more.
        in_flight: the window.
        send: sends the next message; may return before it is sent.
        await_answer: blocks until the receiver has answered its oldest message without an answer yet.
    """
    waiting: deque[float] = deque()
    trips_s: list[float] = []

    def take() -> None:
        await_answer()
        trips_s.append(time.perf_counter() - waiting.popleft())

    start = time.perf_counter()
    messages = 0
    while messages < _FEWEST or time.perf_counter() - start < seconds:
        if len(waiting) == in_flight:
            take()
        waiting.append(time.perf_counter())
        send()
        messages += 1
    while waiting:
        take()
    return Passed(messages, time.perf_counter() - start, trips_s)
