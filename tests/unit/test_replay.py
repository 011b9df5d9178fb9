"""A recording gives the same decisions again; with other settings, others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from msl.cli import main
from msl.errors import ConfigError
from msl.plan.paths import mirrored
from msl.steering.readings import HostReading, LinkReading, ProbeReading, SocketReading, reading_from
from msl.steering.replay import Recorder, replay
from msl.steering.watch import Beginning, Watch

ROUTERS = ("r1", "r2")
BEGINNING = Beginning(
    hops=(("n0", "n1"),),
    path=mirrored([()]),
    routers=ROUTERS,
    between=(),
    max_segments=12,
    settings={"policy": "least-loaded", "gain": 0.2, "confirm_s": 0.3, "hold_s": 2.0, "dead_after": 3},
)


def reading(host: str, at_s: float, out_mbit: float = 10.0, missed: int = 0) -> HostReading:
    links = tuple(
        LinkReading(f"fab{index}", (router,), True, 1000.0, 10.0, out_mbit if router == "r1" else 0.0, 0, 0)
        for index, router in enumerate(ROUTERS, 1)
    )
    peer = "n1" if host == "n0" else "n0"
    probes = tuple(
        ProbeReading(peer, way, full, 50, 40, lost, 0 if lost else 9, 1.0)
        for way in ((), ("r1",), ("r2",))
        for full in (False, True)
        for lost in (missed if way != ("r2",) else 0,)
    )
    sockets = (SocketReading(0, True, 0.4, 3, 88.0, 2, 0.0),)
    return HostReading(host, at_s, links, probes, sockets, {"0": 10.0}, {"0": 10.0}, {peer: "r1"})


def record(path: Path) -> Watch:
    """Congestion begins after a second; the path changes."""
    watch = Watch(BEGINNING)
    with path.open("w") as file:
        recorder = Recorder(file, BEGINNING)
        for tick in range(30):
            for host in ("n0", "n1"):
                fresh = reading(host, tick / 10, 990.0 if tick >= 10 and host == "n0" else 10.0)
                watch.take(fresh)
                recorder.reading(fresh)
            decision = watch.decide(tick / 10)
            recorder.decision(tick / 10, decision)
            watch.path = decision.path
    return watch


def test_a_reading_is_the_same_after_its_way_through_json() -> None:
    before = reading("n0", 1.5)
    assert reading_from(json.loads(json.dumps(before.document()))) == before


def test_the_decisions_of_a_recording_are_made_again(tmp_path: Path) -> None:
    watch = record(tmp_path / "telemetry.jsonl")
    assert watch.path.forward == (("r2",),)
    made = list(replay(tmp_path / "telemetry.jsonl"))
    assert len(made) == 30
    assert all(decided.agrees for decided in made)
    changes = [(decided.now_s, change.after) for decided in made for change in decided.decision.changes]
    assert changes == [(pytest.approx(1.3), ("r2",))]


def test_other_settings_decide_otherwise(tmp_path: Path) -> None:
    record(tmp_path / "telemetry.jsonl")
    made = list(replay(tmp_path / "telemetry.jsonl", {"gain": 0.99}))
    assert not any(decided.decision.changes for decided in made)
    assert not all(decided.agrees for decided in made)


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        ('{"reading": {}}\n', "1: not a recording of telemetry: it does not begin with `begin`"),
        ("what\n", "1: not a recording of telemetry"),
        ('{"begin": {"version": 99}}\n', "version 99, not 1"),
    ],
)
def test_what_is_no_recording_is_refused_with_its_line(tmp_path: Path, text: str, wording: str) -> None:
    path = tmp_path / "telemetry.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=wording):
        list(replay(path))


def test_a_recording_that_was_cut_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    record(path)
    text = path.read_text()
    path.write_text(text[: len(text) - 20])
    with pytest.raises(ConfigError, match=r"telemetry.jsonl:91: not a recording"):
        list(replay(path))


def test_the_command_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "telemetry.jsonl"
    record(path)
    main(["steer", "--replay", str(path)], standalone_mode=False)
    output = capsys.readouterr().out
    assert "30 decisions, 1 of them to change the path; 0 differ from those recorded" in output
    assert "hop 0 forward: r2 (n0->r1 is 99% full, through r2 it would be 2%)" in output


def test_ways_worth_probing_are_those_of_the_graph_and_those_in_use() -> None:
    watch = Watch(replace(BEGINNING, path=mirrored([("r2", "r1")])))
    assert watch.candidates()["n0", "n1"] == ((), ("r2", "r1"))
    assert not watch.complete
    for host in ("n0", "n1"):
        watch.take(reading(host, 0.0))
    assert watch.complete
    assert set(watch.candidates()["n0", "n1"]) == {(), ("r1",), ("r2",), ("r2", "r1")}
    assert set(watch.candidates()["n1", "n0"]) == {(), ("r1",), ("r2",), ("r1", "r2")}


def test_a_link_that_is_down_kills_the_ways_over_it_before_any_probe_is_missed() -> None:
    watch = Watch(BEGINNING)
    for host in ("n0", "n1"):
        watch.take(reading(host, 0.0))
    down = reading("n1", 0.1)
    watch.take(replace(down, links=(replace(down.links[0], up=False), down.links[1])))
    decision = watch.decide(0.1)
    assert decision.path == mirrored([("r2",)])
    assert decision.changes[0].reason == "the link r1->n1 is down"
