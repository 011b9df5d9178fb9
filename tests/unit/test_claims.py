"""One controller at a time; what is set by hand is held; a controller that dies makes room."""

from __future__ import annotations

import pytest

from msl.actors.claims import CLAIM_S, Claims
from msl.errors import NetworkError


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_second_controller_is_refused_until_the_first_is_not_heard_of() -> None:
    clock = Clock()
    claims = Claims(clock)
    claims.take(1, "a:1")
    with pytest.raises(NetworkError, match=r"chain 1 is steered by another controller \(a:1\)"):
        claims.take(1, "b:2")
    claims.take(2, "b:2")  # another chain
    clock.now_s += CLAIM_S - 0.1
    claims.take(1, "a:1")
    clock.now_s += CLAIM_S - 0.1
    assert claims.holders() == {1: "a:1"}
    with pytest.raises(NetworkError):
        claims.take(1, "b:2")
    clock.now_s += 0.2
    assert claims.holders() == {}
    claims.take(1, "b:2")
    with pytest.raises(NetworkError, match="chain 1 is not steered by a:1 any more"):
        claims.check(1, "a:1")
    claims.check(1, "b:2")


def test_a_controller_without_a_claim_may_change_nothing() -> None:
    with pytest.raises(NetworkError, match="chain 1 is not steered by a:1 any more"):
        Claims().check(1, "a:1")


def test_what_is_changed_by_hand_is_held_until_it_is_released_or_had_to_be_left() -> None:
    claims = Claims()
    claims.changed(1, None)
    assert not claims.is_held(1), "nobody would change it"
    claims.take(1, "a:1")
    claims.changed(1, None)
    assert claims.is_held(1)
    claims.hold(1, False)
    assert not claims.is_held(1)
    claims.changed(1, None)
    claims.changed(1, "a:1")  # the way had died
    assert not claims.is_held(1)
    claims.changed(1, None)
    claims.forget(1)
    assert not claims.is_held(1)
    assert claims.holders() == {}
