"""Changes of a chain's path, as commands show them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from msl.cli.console import table

if TYPE_CHECKING:
    from msl.net.sfc.report import ChangeReport

_MOST_CHANGES = 10


def show_changes(changes: Sequence[ChangeReport]) -> None:
    """The last changes of a chain's path, and why."""
    rows = []
    for change in changes[-_MOST_CHANGES:]:
        first = "-" if change.first_packet_ms is None else f"{change.first_packet_ms:.1f}"
        when = datetime.fromtimestamp(change.at).strftime("%H:%M:%S")
        rows.append((when, change.by, change.after, change.reason, first))
    if rows:
        table("changes of the path", ("time", "by", "path", "reason", "first packet ms"), rows)
