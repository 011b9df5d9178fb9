"""The HELLO that the tests of doorkeeper and opening expect, as a value and as bytes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from msl.net.frame import Header, Kind, encode_document
from msl.net.handshake import Hello

EXPECTED = Hello(job="6f" * 16, hop=1, schema="ab" * 32, in_flight=3)
MAX_BODY = 1 << 20


def hello_bytes(hello: Hello = EXPECTED, **changes: Any) -> bytes:
    return b"".join(encode_document(Header(Kind.HELLO), {**asdict(hello), **changes}))
