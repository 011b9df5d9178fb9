"""The package and the C files declare the same maps, numbers and reasons."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator

import pytest

from msl.errors import NetworkError
from msl.net.sfc import layout, proxy
from msl.net.sfc.maps import Map, maps_of, sizes_of
from msl.plan import addressing
from tests.net.datapath import Datapath

pytestmark = pytest.mark.root

HEADER = (proxy.source_folder() / "msl.h").read_text()


def names_of(enum: str) -> list[str]:
    body = re.search(rf"enum {enum} {{(.*?)}};", HEADER, re.S)
    assert body is not None
    return re.findall(r"[A-Z_0-9]+", re.sub(r"/\*.*?\*/", "", body[1], flags=re.S))


def number(macro: str) -> int:
    found = re.search(rf"#define {macro} (\w+)", HEADER)
    assert found is not None
    return int(found[1], 0)


@pytest.fixture
def maps(datapath: Datapath) -> Iterator[dict[str, int]]:
    maps: dict[str, int] = {}
    for program in ("ingress", "egress"):
        for name, fd in maps_of(datapath.proxy.program(program)).items():
            if name in maps:
                os.close(fd)
            else:
                maps[name] = fd
    yield maps
    for fd in maps.values():
        os.close(fd)


def test_reasons_stand_in_the_same_order() -> None:
    names = names_of("reason")
    assert names.pop() == "REASONS"
    assert [name.removeprefix("REASON_").lower() for name in names] == list(layout.REASONS)


def test_ways_and_kinds_have_the_same_numbers() -> None:
    assert names_of("way") == [way.name for way in layout.Way]
    kinds = dict(re.findall(r"KIND_(\w+) = (\d+)", HEADER))
    assert kinds == {kind.name: str(kind.value) for kind in layout.Kind}


@pytest.mark.parametrize("macro", ["MAX_SEGMENTS", "DELIVER_MARK", "NSF_PORT", "FINISHED_RESET"])
def test_macros_have_the_same_values(macro: str) -> None:
    assert number(macro) == getattr(layout, macro)


def test_the_longest_segment_list_is_the_same() -> None:
    assert addressing.MAX_SEGMENTS == layout.MAX_SEGMENTS


def test_the_loaded_maps_have_the_sizes_of_the_layout(maps: dict[str, int]) -> None:
    proxy.check_sizes(maps)


@pytest.mark.parametrize("name", ["settings", "sids", "services", "flows", "embryos", "paths", "drops", "traffic"])
def test_a_map_of_other_sizes_is_refused(maps: dict[str, int], name: str) -> None:
    other = next(other for other in maps if sizes_of(maps[other]) != sizes_of(maps[name]))
    with pytest.raises(NetworkError, match=f"map {name}: the C files have sizes"):
        proxy.check_sizes(maps | {name: maps[other]})


def test_there_is_a_counter_for_each_reason(datapath: Datapath, maps: dict[str, int]) -> None:
    assert list(datapath.proxy.drops()) == list(layout.REASONS)
    drops: Map[ctypes.c_uint32, ctypes.c_uint64] = datapath.proxy.table("drops")
    assert [key.value for key in drops] == list(range(len(layout.REASONS)))
