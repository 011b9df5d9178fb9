"""Sends messages with a bounded number of them on their way; the same loop for every way to send."""

from __future__ import annotations

import time
from collections.abc import Callable


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
