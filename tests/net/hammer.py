"""Learns and reads paths on two CPUs as fast as they can; see hammer.c."""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
from collections.abc import Sequence
from ipaddress import IPv6Address
from pathlib import Path

from msl.net.compiler import compile_source, load_program
from msl.net.sfc import layout, proxy
from msl.net.sfc.maps import Map, run_program
from msl.plan.addressing import SegmentList
from msl.plan.steering import ChainPlan, DomainPlan

_RUNS = 3_000_000
_PACKET = bytes(12) + b"\x86\xdd" + bytes(100)


class _Lesson(ctypes.Structure):
    _fields_ = (("first", layout.Arrival), ("second", layout.Arrival), ("sid", layout.SidEntry))


class Shared(ctypes.Structure):
    _fields_ = (
        ("turn", ctypes.c_uint64),
        ("path", ctypes.c_uint64),
        ("read", ctypes.c_uint64),
        ("torn", ctypes.c_uint64),
    )


def hammer(domain: DomainPlan, chain: ChainPlan, first: SegmentList, second: SegmentList) -> Shared:
    """How often a path of the chain's first NSF was read while it changed between two, and found torn."""
    source = Path(shutil.copy(Path(__file__).with_name("hammer.c"), proxy.source_folder()))
    module = compile_source(source, {})
    learn, check = load_program(module, "learn"), load_program(module, "check")
    zero = ctypes.c_uint32(0)
    lesson = _Lesson(_arrival(domain, chain, first), _arrival(domain, chain, second), _sid(chain))
    Map(os.dup(module[b"lessons"].map_fd), ctypes.c_uint32, _Lesson).put(zero, lesson)
    _run_on_two_cpus([learn, check])
    shared = Map(os.dup(module[b"everyones"].map_fd), ctypes.c_uint32, Shared).get(zero)
    assert shared is not None
    return shared


def _arrival(domain: DomainPlan, chain: ChainPlan, segments: SegmentList) -> layout.Arrival:
    here = chain.stops[0].sid
    last = len(segments) - 1
    header = layout.Srh(41, 2 * len(segments), 4, last - segments.index(here), last, 0, 0)
    head = domain.host(chain.source).decap
    return layout.Arrival(layout.Address.of(head), layout.Address.of(here), header, _addresses(reversed(segments)))


def _sid(chain: ChainPlan) -> layout.SidEntry:
    service = layout.Address.of(chain.service)
    stops = _addresses(chain.sids)
    return layout.SidEntry(service, service, stops, len(chain.stops), 0, layout.Kind.NSF, 0)


def _addresses(segments: Sequence[IPv6Address] | reversed[IPv6Address]) -> ctypes.Array[layout.Address]:
    found = (layout.Address * layout.MAX_SEGMENTS)()
    for index, segment in enumerate(segments):
        found[index] = layout.Address.of(segment)
    return found


def _run_on_two_cpus(programs: Sequence[int]) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    threads = [threading.Thread(target=_run, args=each) for each in zip(programs, cpus, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run(program: int, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})  # of this thread
    run_program(program, _PACKET, _RUNS)
