"""What the members of a benchmarked chain are asked for, and how they check what goes through them."""

from __future__ import annotations

import os
import struct
import zlib
from typing import NamedTuple

NUMBER = struct.Struct("<Q")
"""The last bytes of a message, and of the answer to it: messages of a chain are counted from 0."""
SMALLEST = 64
"""Bytes of the smallest message."""
IN_FLIGHT = 4
"""Most messages without an answer: as many micro-batches as a chain of four stages has under way."""
CONNECT_S = 20.0
SILENCE_S = 20.0
"""Longest time without any progress on a socket."""
ANSWER_S = 60.0
"""Longest wait for the answer to a message."""


class Order(NamedTuple):
    """A sample that is to be measured."""

    num_bytes: int
    """Of a message."""
    in_flight: int
    seconds: float
    echo: bool
    """Whether the answer is the message itself, or a few bytes."""
    whole: bool
    """Whether both ends add up a CRC-32 of every byte."""


class Tally(NamedTuple):
    """All that an end has sent, or received, so far; of both ends it must be the same."""

    messages: int = 0
    num_bytes: int = 0
    crc: int = 0
    """CRC-32 of all messages of orders for which it is asked."""
    wrong: int = 0
    """Messages whose number was not the next one."""


class Ledger:
    """Counts messages at one end of a chain."""

    def __init__(self) -> None:
        self.whole = False
        self.tally = Tally()

    def note(self, message: memoryview) -> None:
        """Count a message."""
        messages, num_bytes, crc, wrong = self.tally
        wrong += number_of(message) != messages
        if self.whole:
            crc = zlib.crc32(message, crc)
        self.tally = Tally(messages + 1, num_bytes + len(message), crc, wrong)


def number_of(message: memoryview) -> int:
    """The number at a message's end."""
    number: int = NUMBER.unpack_from(message, len(message) - NUMBER.size)[0]
    return number


def random_messages(order: Order) -> list[bytearray]:
    """Messages of random bytes, as many as may be under way."""
    return [bytearray(os.urandom(order.num_bytes)) for _ in range(order.in_flight)]
