"""Opens one hop of a chain: accept the previous hop, connect to the next, pass HELLO and WELCOME on."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from msl.errors import MslError, NetworkError
from msl.net.connection import Connection, refuse
from msl.net.fabric import Fabric
from msl.net.frame import Header, Kind
from msl.net.handshake import Doorkeeper, Hello, say_hello


@dataclass(frozen=True)
class HopPlan:
    """What a hop must know to open its connections."""

    hello: Hello
    """The HELLO that this stage expects (its own place as `hop`)."""
    name: str
    host: str
    next_peer: str | None
    """Who the next hop is, for error messages; None at the sink."""
    max_body: int
    connect_s: float
    silence_s: float

    @property
    def own(self) -> dict[str, Any]:
        """This stage's entry in the path that WELCOME lists."""
        return {"hop": self.hello.hop, "name": self.name, "host": self.host}


def open_source(fabric: Fabric, plan: HopPlan) -> tuple[Connection, list[dict[str, Any]]]:
    """Open the chain from its source.

    Returns:
        The connection to the first hop, and the path that the sink's WELCOME went.

    Raises:
        NetworkError: a hop refused or did not answer in time.
    """
    connection, path = _onward(fabric, plan, None, time.monotonic() + plan.connect_s)
    return connection, [plan.own, *path]


def open_relay(fabric: Fabric, plan: HopPlan, door: Doorkeeper) -> tuple[Connection, Connection | None]:
    """Wait for the previous hop, connect to the next one if there is one, and welcome the previous one.

    Returns:
        The connections to the previous and to the next hop (None at the sink).

    Raises:
        NetworkError: the previous hop did not come, or the next one refused or did not answer in time.
    """
    deadline = time.monotonic() + plan.connect_s
    previous, accepted = door.admit(plan.connect_s)
    following = None
    path: list[dict[str, Any]] = []
    try:
        if plan.next_peer is not None:
            following, path = _onward(fabric, plan, accepted, deadline)
        previous.send_document(Header(Kind.WELCOME), {"path": [plan.own, *path]})
    except MslError as error:
        for connection in (previous, following):
            if connection is not None:
                refuse(connection, error)
        raise
    return previous, following


def _onward(fabric: Fabric, plan: HopPlan, accepted: Any, deadline: float) -> tuple[Connection, list[dict[str, Any]]]:
    peer = plan.next_peer or ""
    try:
        sock = fabric.onward(accepted)
    except NetworkError as error:
        raise NetworkError(f"{peer}: {error}") from error
    left_s = max(0.1, deadline - time.monotonic())
    connection = Connection(sock, peer, plan.max_body, left_s)
    try:
        path = say_hello(connection, _for_next(plan), left_s)
    except BaseException:
        connection.close()
        raise
    connection.set_silence(plan.silence_s)
    return connection, path


def _for_next(plan: HopPlan) -> Hello:
    return replace(plan.hello, hop=plan.hello.hop + 1)
