"""Who may change the path of a chain: one controller at a time, and people by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from msl.errors import NetworkError

CLAIM_S = 5.0
"""A controller that is not heard of for so long has lost the chain to the next one."""


@dataclass
class _Claim:
    holder: str
    until_s: float


@dataclass
class Claims:
    """The claims at one host, that of the chains' sources."""

    now: Callable[[], float] = time.monotonic
    _claims: dict[int, _Claim] = field(default_factory=dict)
    _held: set[int] = field(default_factory=set)

    def take(self, number: int, holder: str) -> None:
        """Claim a chain, or keep it.

        Raises:
            NetworkError: another controller has it.
        """
        claim = self._living(number)
        if claim is not None and claim.holder != holder:
            raise NetworkError(
                f"chain {number} is steered by another controller ({claim.holder}); two would work against each other"
            )
        self._claims[number] = _Claim(holder, self.now() + CLAIM_S)

    def check(self, number: int, holder: str | None) -> None:
        """Whether somebody may change the path: a controller that has the chain, or people by hand (None).

        Raises:
            NetworkError: a controller that does not have the chain.
        """
        claim = self._living(number)
        if holder is not None and (claim is None or claim.holder != holder):
            raise NetworkError(f"chain {number} is not steered by {holder} any more")

    def changed(self, number: int, holder: str | None) -> None:
        """Somebody has changed the path. What is set by hand is held from then on, if there is a controller."""
        self.hold(number, holder is None and self._living(number) is not None)

    def hold(self, number: int, held: bool) -> None:
        """Keep the path that was set by hand, or let the controller go on."""
        if held:
            self._held.add(number)
        else:
            self._held.discard(number)

    def is_held(self, number: int) -> bool:
        """Whether the controller shall leave the path as it is while it carries packets."""
        return number in self._held

    def holders(self) -> dict[int, str]:
        """The living controllers, by chain."""
        return {number: claim.holder for number in self._claims if (claim := self._living(number)) is not None}

    def forget(self, number: int) -> None:
        """The chain is gone."""
        self._claims.pop(number, None)
        self._held.discard(number)

    def _living(self, number: int) -> _Claim | None:
        claim = self._claims.get(number)
        return claim if claim is not None and self.now() < claim.until_s else None
