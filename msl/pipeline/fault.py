"""What went wrong in a chain, and where: the document of an ERROR frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from msl.errors import MslError

LONGEST_MESSAGE = 1000
"""Characters of an error's message that travel; the document of a frame is bounded."""
LONGEST_DETAIL = 4000
"""Characters of a traceback that are told, from its end."""


@dataclass(frozen=True)
class Fault:
    """A failure, told by the stage that saw it first."""

    kind: str
    """Class of the error, e.g. `NetworkError`."""
    stage: str
    """Name of the stage that tells of it, e.g. `nsf1`."""
    host: str
    step: int
    micro_batch: int
    message: str
    detail: str = ""
    """Traceback of an error that msl did not foresee, e.g. in the model's own code."""

    def __str__(self) -> str:
        where = f"host {self.host}, stage {self.stage}, step {self.step}, micro-batch {self.micro_batch}"
        return f"{where}: {self.message}"

    def document(self) -> dict[str, Any]:
        """The JSON document that carries the fault to the other stages."""
        return asdict(self)


def read_fault(document: Mapping[str, Any]) -> Fault:
    """Make sense of an ERROR's document, also of one that leaves fields out."""

    def text(name: str, default: str = "?", limit: int = LONGEST_MESSAGE) -> str:
        return str(document.get(name, default))[:limit]

    def number(name: str) -> int:
        value = document.get(name)
        return value if isinstance(value, int) else -1

    return Fault(
        kind=text("kind"),
        stage=text("stage"),
        host=text("host"),
        step=number("step"),
        micro_batch=number("micro_batch"),
        message=text("message"),
        detail=text("detail", "", LONGEST_DETAIL),
    )


class FaultError(MslError):
    """A fault that another stage told of."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault
