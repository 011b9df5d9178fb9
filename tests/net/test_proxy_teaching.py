"""What changes a flow's path, what does not, and when a connection counts as established."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator

import pytest

from msl.net.sfc.layout import FINISHED_RESET, FlowEntry, FlowKey
from msl.net.sfc.maps import NOEXIST
from tests.net.datapath import MIDDLE, OK, REDIRECT, SHOT, Datapath, ends_of
from tests.net.packets import ACK, FIN, RST, SYN, frame, mirrored, tcp
from tests.net.passages import ALIASED, AT_FIRST, AT_LAST, AT_MIDDLE, R1, R2, Passage

pytestmark = pytest.mark.root

PLACES = pytest.mark.parametrize("passage", [AT_FIRST, ALIASED, AT_LAST], ids=str)
MAX_PATHS, MAX_FLOWS = 2048, 65_536
DATA = tcp(AT_MIDDLE.ends, ACK, b"some bytes")


@pytest.fixture
def connected(datapath: Datapath) -> Iterator[Datapath]:
    """With an established connection, in `flows`, whose path has the generation 100."""
    with datapath.established(AT_MIDDLE.local_ends):
        assert datapath.put(AT_MIDDLE.arriving(DATA, tag=100)).verdict == OK
        yield datapath


def lasting(flow: FlowEntry | None) -> tuple[int, int, int]:
    """A flow without its counters."""
    assert flow is not None
    return flow.path, flow.finished, flow.index


def generation(datapath: Datapath, passage: Passage = AT_MIDDLE, name: str = "flows") -> int:
    tag: int = datapath.path(datapath.flow(passage.local_ends, name)).arrival.generation
    return tag


def fill(datapath: Datapath, name: str, size: int) -> None:
    table = datapath.proxy.table(name)
    key, value = (ctypes.c_uint64(), table.zero()) if name == "paths" else (FlowKey(), table.zero())
    for number in range(size - len(table.keys())):
        ctypes.memmove(ctypes.byref(key), number.to_bytes(8, "little"), 8)
        table.put(key, value, NOEXIST)


def test_the_same_path_again_changes_nothing(connected: Datapath) -> None:
    before = lasting(connected.flow(AT_MIDDLE.local_ends))
    paths = {number: bytes(path) for number, path in connected.table("paths").items()}
    for _ in range(3):
        assert connected.put(AT_MIDDLE.arriving(DATA, tag=100)).verdict == OK
    assert lasting(connected.flow(AT_MIDDLE.local_ends)) == before
    assert {number: bytes(path) for number, path in connected.table("paths").items()} == paths
    assert len(paths) == 1


@pytest.mark.parametrize(
    ("known", "arriving", "newer"),
    [
        (5, 6, True),
        (5, 4, False),
        (5, 5, True),  # another path of the same generation: the last one counts
        (65_535, 0, True),
        (0, 65_535, False),
        (65_530, 3, True),
        (3, 65_530, False),
        (0, 32_767, True),
        (1000, 744, False),
        (1000, 743, True),  # so far behind that the known one must have been forged
        (100, 65_380, False),
        (100, 65_379, True),
    ],
)
@pytest.mark.parametrize("established", [True, False], ids=["a flow", "an embryo"])
def test_a_path_gives_way_to_a_newer_one_only(
    datapath: Datapath, known: int, arriving: int, newer: bool, established: bool
) -> None:
    data, name = tcp(AT_LAST.ends, ACK), "flows" if established else "embryos"

    def both() -> None:
        assert datapath.put(AT_LAST.arriving(data, tag=known)).verdict == OK
        assert datapath.put(AT_LAST.changed().arriving(data, tag=arriving)).verdict == OK

    if established:
        with datapath.established(AT_LAST.local_ends):
            both()
    else:
        both()
    path = datapath.path(datapath.flow(AT_LAST.local_ends, name))
    wanted = AT_LAST.changed() if newer else AT_LAST
    assert (path.arrival.travel, path.arrival.generation) == (wanted.travel, arriving if newer else known)


def test_paths_that_differ_in_a_segment_are_told_apart(datapath: Datapath) -> None:
    for waypoint in (R1, R2):
        place = dataclasses.replace(AT_LAST, before=((), (waypoint,), ()))
        assert datapath.put(place.arriving(tcp(place.ends, ACK))).verdict == OK
        assert datapath.path(datapath.flow(place.local_ends, "embryos")).arrival.travel == place.travel
    assert len(datapath.table("paths")) == 2


@PLACES
def test_after_a_change_both_directions_take_the_new_path(datapath: Datapath, passage: Passage) -> None:
    for place, tag in ((passage, 1), (passage.changed(), 2)):
        datapath.put(place.arriving(tcp(place.ends, SYN), tag=tag))
        answer = datapath.put(frame(tcp(mirrored(place.local_ends), ACK)), "egress").frame
        assert answer[18:] == place.back(tcp(mirrored(place.ends), ACK), tag)[18:]
    assert len(datapath.table("paths")) == 2


@pytest.mark.parametrize("tag", [99, 100, 101])
def test_a_wrong_list_does_not_change_a_known_flow(connected: Datapath, tag: int) -> None:
    wrong = Passage("the sink first, too", MIDDLE, 0, ((MIDDLE.sids[2],), (), (R1,)))
    before = lasting(connected.flow(AT_MIDDLE.local_ends))
    outcome = connected.put(wrong.arriving(DATA, tag=tag))
    # Of an older generation it is as good as any packet that was overtaken: delivered, and its list not looked at.
    assert (outcome.verdict, outcome.reason) == ((OK, None) if tag == 99 else (SHOT, "wrong_path"))
    assert lasting(connected.flow(AT_MIDDLE.local_ends)) == before
    assert generation(connected) == 100


def test_answers_teach_nothing(connected: Datapath) -> None:
    before = lasting(connected.flow(AT_MIDDLE.local_ends))
    connected.put(AT_MIDDLE.changed().answering(tcp(mirrored(AT_MIDDLE.ends))))
    assert lasting(connected.flow(AT_MIDDLE.local_ends)) == before
    assert len(connected.table("paths")) == 1


def test_with_no_room_for_a_path_what_is_known_goes_on(connected: Datapath) -> None:
    fill(connected, "paths", MAX_PATHS)
    before = lasting(connected.flow(AT_MIDDLE.local_ends))
    assert connected.put(AT_MIDDLE.changed().arriving(DATA, tag=101)).reason == "full"
    assert lasting(connected.flow(AT_MIDDLE.local_ends)) == before
    assert connected.put(AT_MIDDLE.arriving(DATA, tag=100)).verdict == OK
    assert connected.put(frame(DATA), "egress").verdict == REDIRECT
    another = ends_of(MIDDLE, port=50_000)
    connected.put(AT_MIDDLE.arriving(tcp(another, SYN), tag=100))
    assert generation(connected) == connected.path(connected.flow(another, "embryos")).arrival.generation == 100


def test_two_paths_of_the_same_number_cannot_both_be_learnt(connected: Datapath) -> None:
    paths, before = connected.proxy.table("paths"), lasting(connected.flow(AT_MIDDLE.local_ends))
    (number,) = paths.keys()
    other = paths.get(number)
    assert other is not None
    other.arrival.srh.tag = 0
    paths.put(number, other)
    assert connected.put(AT_MIDDLE.arriving(DATA, tag=100)).reason == "full"
    assert lasting(connected.flow(AT_MIDDLE.local_ends)) == before
    assert bytes(connected.path(connected.flow(AT_MIDDLE.local_ends))) == bytes(other)


def test_a_path_that_was_forgotten_is_learnt_again(connected: Datapath) -> None:
    paths = connected.proxy.table("paths")
    for number in paths:
        paths.remove(number)
    assert connected.put(AT_MIDDLE.changed().arriving(DATA, tag=3)).verdict == OK
    assert generation(connected) == 3


@PLACES
def test_a_connection_is_a_flow_from_its_first_packet_with_a_socket_on(datapath: Datapath, passage: Passage) -> None:
    for flags in (SYN, ACK, ACK):
        datapath.put(passage.arriving(tcp(passage.ends, flags)))
        assert not datapath.table("flows")
    embryo = datapath.flow(passage.local_ends, "embryos")
    with datapath.established(passage.local_ends):
        datapath.put(passage.arriving(tcp(passage.ends, SYN)))
        assert not datapath.table("flows")  # only a listener has to do with a SYN
        assert datapath.put(passage.arriving(tcp(passage.ends, ACK))).verdict == OK
    assert not datapath.table("embryos")
    flow = datapath.flow(passage.local_ends)
    assert lasting(flow) == lasting(embryo)
    assert flow is not None
    assert flow.packets[0] == 5


def test_the_socket_of_another_connection_makes_no_flow(datapath: Datapath) -> None:
    with datapath.established(ends_of(MIDDLE, port=50_000)):
        datapath.put(AT_MIDDLE.arriving(DATA))
    assert not datapath.table("flows")


def test_with_no_room_for_a_flow_an_embryo_works_as_one(datapath: Datapath) -> None:
    fill(datapath, "flows", MAX_FLOWS)
    with datapath.established(AT_MIDDLE.local_ends):
        for _ in range(2):
            outcome = datapath.put(AT_MIDDLE.arriving(DATA))
            assert (outcome.verdict, outcome.packet) == (OK, DATA)
    assert datapath.flow(AT_MIDDLE.local_ends) is None
    assert datapath.flow(AT_MIDDLE.local_ends, "embryos")
    assert datapath.put(frame(DATA), "egress").verdict == REDIRECT
    assert datapath.put(AT_MIDDLE.answering(tcp(mirrored(AT_MIDDLE.ends)))).verdict == OK


@pytest.mark.parametrize(
    ("flags", "bits"),
    [(FIN | ACK, (1, 2, 4, 8)), (RST, (FINISHED_RESET,) * 4), (ACK, (0,) * 4)],
    ids=["FIN", "RST", "ACK"],
)
def test_the_end_of_each_direction_is_noted(datapath: Datapath, flags: int, bits: tuple[int, ...]) -> None:
    forward, backward = tcp(AT_MIDDLE.ends, flags), tcp(mirrored(AT_MIDDLE.ends), flags)
    for way, noted in enumerate(bits):
        datapath.put(AT_MIDDLE.arriving(tcp(AT_MIDDLE.ends, SYN)))
        assert lasting(datapath.flow(AT_MIDDLE.local_ends, "embryos"))[1] == 0  # the ports are used again
        packets = AT_MIDDLE.arriving(forward), frame(forward), AT_MIDDLE.answering(backward), frame(backward)
        datapath.put(packets[way], "egress" if way % 2 else "ingress")
        assert lasting(datapath.flow(AT_MIDDLE.local_ends, "embryos"))[1] == noted


def test_ends_add_up(connected: Datapath) -> None:
    for flags in (FIN | ACK, RST):
        connected.put(AT_MIDDLE.arriving(tcp(AT_MIDDLE.ends, flags), tag=100))
        connected.put(frame(tcp(mirrored(AT_MIDDLE.ends), flags)), "egress")
    assert lasting(connected.flow(AT_MIDDLE.local_ends))[1] == 1 | 8 | FINISHED_RESET
