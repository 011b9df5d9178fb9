"""Ways back of their own, and paths that a silent flow is taught."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from msl.errors import NetworkError
from msl.net.sfc import path
from msl.plan.paths import return_segments
from tests.net.datapath import DOMAIN, FIRST, HEAD_END, LAST, MIDDLE, OK, REDIRECT, Datapath
from tests.net.packets import ACK, Srv6, frame, mirrored, tcp
from tests.net.passages import ALIASED, AT_FIRST, AT_LAST, AT_MIDDLE, R1, R2, Passage

pytestmark = pytest.mark.root

PLACES = pytest.mark.parametrize("passage", [AT_FIRST, AT_MIDDLE, AT_LAST, ALIASED], ids=str)


@pytest.fixture(autouse=True)
def cleared(datapath: Datapath) -> Iterator[None]:
    yield
    for passage in (AT_FIRST, AT_MIDDLE, AT_LAST, ALIASED):
        set_return(datapath, passage, None, 0)


def hop_of(passage: Passage) -> int:
    return passage.chain.stops.index(passage.stop)


def set_return(datapath: Datapath, passage: Passage, way: tuple[str, ...] | None, generation: int) -> None:
    hop = hop_of(passage)
    segments = None if way is None else return_segments(passage.chain, DOMAIN, hop, way)
    datapath.do(partial(path.set_return, datapath.agent, passage.chain.number, hop, segments, generation))


def leaving(datapath: Datapath, packet: bytes) -> Srv6:
    outcome = datapath.put(frame(packet), "egress")
    assert outcome.verdict == REDIRECT
    return Srv6.parse(outcome.frame)


@PLACES
@pytest.mark.parametrize("way", [("r2",), (), ("r2", "r1")])
def test_answers_take_their_own_way_and_what_goes_on_does_not(
    datapath: Datapath, passage: Passage, way: tuple[str, ...]
) -> None:
    datapath.put(passage.arriving(tcp(passage.ends), tag=7))
    mirrored_way = leaving(datapath, tcp(mirrored(passage.local_ends), ACK, b"answer"))
    set_return(datapath, passage, way, 8)
    back = leaving(datapath, tcp(mirrored(passage.local_ends), ACK, b"answer"))
    hop = hop_of(passage)
    routers = {"r1": R1, "r2": R2}
    before = [stop.sid for stop in reversed(passage.chain.stops[:hop])]
    assert back.travel == (*(routers[name] for name in way), *before, HEAD_END)
    assert (back.ip.source, back.ip.destination) == (passage.stop.sid, back.travel[0])
    assert (back.left, back.tag) == (len(back.travel) - 1, 8)
    assert back.inner == mirrored_way.inner
    if not passage.is_sink:
        assert leaving(datapath, tcp(passage.local_ends, ACK, b"on")).travel == passage.travel
    set_return(datapath, passage, None, 9)
    assert leaving(datapath, tcp(mirrored(passage.local_ends), ACK, b"answer")) == mirrored_way


@PLACES
def test_the_agent_tells_the_ways_back_that_are_there(datapath: Datapath, passage: Passage) -> None:
    number, hop = passage.chain.number, hop_of(passage)
    assert datapath.do(lambda: path.returns_here(datapath.agent, number)) == {}
    set_return(datapath, passage, ("r2",), 3)
    wanted = return_segments(passage.chain, DOMAIN, hop, ("r2",))
    assert datapath.do(lambda: path.returns_here(datapath.agent, number)) == {hop: wanted}


def test_a_way_back_of_a_hop_that_does_not_end_here_is_refused(datapath: Datapath) -> None:
    for hop in (1, 2, 9):
        with pytest.raises(NetworkError, match=f"hop {hop} of chain {FIRST.number} does not end here"):
            datapath.do(partial(path.set_return, datapath.agent, FIRST.number, hop, None, 0))


@PLACES
def test_a_flow_that_nothing_arrives_for_learns_the_path_it_is_taught(datapath: Datapath, passage: Passage) -> None:
    newer = passage.changed()
    with datapath.established(passage.local_ends):
        assert datapath.put(passage.arriving(tcp(passage.ends), tag=7)).verdict == OK
        teach = partial(path.teach, datapath.agent, passage.chain.number, newer.travel, 8)
        assert datapath.do(teach) == 1
        flow = datapath.flow(passage.local_ends)
        assert flow is not None
        assert flow.generation == 8
        learnt = datapath.path(flow)
        by_teaching = bytes(learnt)
        assert learnt.arrival.travel == newer.travel
        assert datapath.do(teach) == 0, "it knows it already"
        # What a packet would have taught is the very same.
        datapath.put(newer.arriving(tcp(passage.ends, ACK, b"data"), tag=8))
        assert bytes(datapath.path(datapath.flow(passage.local_ends))) == by_teaching


def test_a_flow_that_has_a_newer_path_is_not_taught_an_older_one(datapath: Datapath) -> None:
    with datapath.established(AT_MIDDLE.local_ends):
        datapath.put(AT_MIDDLE.arriving(tcp(AT_MIDDLE.ends), tag=7))
        teach = partial(path.teach, datapath.agent, MIDDLE.number, AT_MIDDLE.changed().travel, 6)
        assert datapath.do(teach) == 0
        flow = datapath.flow(AT_MIDDLE.local_ends)
        assert datapath.path(flow).arrival.travel == AT_MIDDLE.travel


def test_the_first_packet_over_a_path_is_waited_for(datapath: Datapath) -> None:
    with datapath.established(AT_LAST.local_ends):
        datapath.put(AT_LAST.arriving(tcp(AT_LAST.ends), tag=7))
        await_path = partial(path.await_path, datapath.agent, LAST.number, 8, 0.05)
        assert not datapath.do(await_path)
        datapath.put(AT_LAST.changed().arriving(tcp(AT_LAST.ends), tag=8))
        assert datapath.do(await_path)
