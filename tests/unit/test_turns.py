"""Whose request is computed next: order, fairness, merging and its latency budget."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

from hypothesis import given
from hypothesis import strategies as st

from msl.net.connection import Frame
from msl.net.frame import DType, Header, Kind, TensorSpec
from msl.pipeline.serving.request import Request
from msl.pipeline.serving.session import Session
from msl.pipeline.serving.turns import Turns

MS = 1_000_000


def session() -> Session:
    return Session(Mock())


def request(of: Session, samples: int = 1, received_ms: float = 0.0, dtype: DType = DType.FLOAT32) -> Request:
    frame = Frame(Header(Kind.FORWARD), (TensorSpec(dtype, (samples, 8)),))
    return Request(of, frame, samples, 0, received_ns=int(received_ms * MS))


def drained(turns: Turns) -> list[list[Request]]:
    taken = []
    while turns:
        taken.append(turns.take())
    return taken


def test_without_a_budget_each_request_is_taken_by_itself_at_once() -> None:
    turns, one = Turns(), session()
    requests = [request(one), request(one)]
    assert turns.due_in_ns(0) is None
    for each in requests:
        turns.add(each)
    assert turns.due_in_ns(0) == 0
    assert drained(turns) == [[requests[0]], [requests[1]]]


def test_a_busy_session_does_not_keep_another_waiting() -> None:
    turns, busy, quiet = Turns(), session(), session()
    many = [request(busy) for _ in range(5)]
    for each in many:
        turns.add(each)
    single = request(quiet)
    turns.add(single)
    assert [taken for (taken,) in drained(turns)] == [many[0], single, *many[1:]]


def test_within_the_budget_requests_wait_for_others_and_are_taken_together() -> None:
    turns, first, second = Turns(max_wait_ms=5), session(), session()
    early, late = request(first, received_ms=1), request(second, received_ms=3)
    turns.add(early)
    assert turns.due_in_ns(2 * MS) == 4 * MS
    turns.add(late)
    assert turns.due_in_ns(4 * MS) == 2 * MS
    assert turns.due_in_ns(9 * MS) == 0
    assert turns.take() == [early, late]


def test_a_full_batch_does_not_wait() -> None:
    turns, first, second = Turns(max_wait_ms=5, max_samples=4), session(), session()
    for each in (request(first, 3), request(second, 1)):
        turns.add(each)
    assert turns.due_in_ns(0) == 0


def test_what_does_not_fit_is_left_for_the_next_time() -> None:
    turns, first, second = Turns(max_wait_ms=5, max_samples=4), session(), session()
    big, other, strange = request(first, 9), request(second, 2), request(second, 1, dtype=DType.FLOAT64)
    for each in (big, other, strange):
        turns.add(each)
    assert drained(turns) == [[big], [other], [strange]]


def test_a_session_that_is_gone_is_forgotten() -> None:
    turns, gone, stays = Turns(), session(), session()
    left = [request(gone), request(gone)]
    kept = request(stays)
    for each in (*left, kept):
        turns.add(each)
    assert turns.remove(gone) == left
    assert turns.remove(gone) == []
    assert drained(turns) == [[kept]]


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=40),
    budget=st.sampled_from([0.0, 2.0]),
    most=st.integers(1, 8),
)
def test_nothing_is_lost_and_each_session_keeps_its_order(
    arrivals: list[tuple[int, int]], budget: float, most: int
) -> None:
    turns, sessions = Turns(budget, most), [session() for _ in range(5)]
    added = [request(sessions[who], samples) for who, samples in arrivals]
    for each in added:
        turns.add(each)
    taken = drained(turns)
    assert sorted(map(id, (one for group in taken for one in group))) == sorted(map(id, added))
    for one in sessions:
        assert [r for group in taken for r in group if r.session is one] == [r for r in added if r.session is one]
    for group in taken:
        assert len(group) == 1 or sum(each.samples for each in group) <= most
        assert budget or len(group) == 1


def test_requests_are_told_apart_by_identity() -> None:
    one = session()
    first = request(one)
    assert first != replace(first)
