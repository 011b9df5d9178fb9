"""The plan: who stands where, on which host, with how many threads; pure, so that it can be shown before it is done."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import pytest

from msl.config import Config
from msl.errors import ConfigError
from msl.plan import Place, Plan, Profile, StageProfile, build, lay_out, render


def config(**changes: object) -> Config:
    base: dict[str, object] = {"model": {"factory": "my.models:Net"}, "data": {"factory": "my.data:load"}}
    return Config.model_validate({**base, **changes})


def measured(stages: int) -> Profile:
    """A made-up profile in which all numbers differ."""
    return Profile(
        cut=tuple(f"layer{i}" for i in range(1, stages)),
        stages=tuple(StageProfile(1000 + i, 10.0 + i, 20.0 + i) for i in range(stages)),
        bytes_across=tuple(100 + i for i in range(stages - 1)),
        inputs=(),
        input_bytes=7,
    )


def planned(job: Config, cpus: int | dict[str, int] = 8) -> Plan:
    hosts, places = lay_out(job)
    stages = sum(place.stage is not None for place in places)
    return build(job, measured(stages), cpus if isinstance(cpus, dict) else dict.fromkeys(hosts, cpus), 100)


def hosts_of(places: tuple[Place, ...]) -> list[str]:
    return [place.host for place in places]


@pytest.mark.parametrize("stages", range(2, 7))
def test_stages_stand_in_travel_order_one_per_host(stages: int) -> None:
    hosts, places = lay_out(config(split={"stages": stages}))
    assert hosts == tuple(f"n{i}" for i in range(stages))
    assert [place.name for place in places] == ["source", *(f"nsf{i}" for i in range(1, stages - 1)), "sink"]
    assert [place.role for place in places] == ["source", *["nsf"] * (stages - 2), "sink"]
    assert [(place.hop, place.stage) for place in places] == [(i, i) for i in range(stages)]
    assert hosts_of(places) == list(hosts)


@pytest.mark.parametrize("stages", range(1, 7))
def test_a_source_without_a_stage_adds_a_place_before_stage_0(stages: int) -> None:
    hosts, places = lay_out(config(split={"stages": stages}, chain={"stage_at_source": False}))
    assert len(hosts) == len(places) == stages + 1
    assert [place.stage for place in places] == [None, *range(stages)]
    assert (places[0].role, places[-1].role) == ("source", "sink")


def test_names_of_modules_say_how_many_stages_there_are() -> None:
    _, places = lay_out(config(split={"cut": ["layer2", "layer3", "layer4"]}))
    assert [place.name for place in places] == ["source", "nsf1", "nsf2", "sink"]


def test_hosts_alone_say_how_many_stages_there_are() -> None:
    _, places = lay_out(config(hosts=["a", "b", "c"]))
    assert [(place.host, place.stage) for place in places] == [("a", 0), ("b", 1), ("c", 2)]
    _, places = lay_out(config(hosts=["a", "b", "c"], chain={"stage_at_source": False}))
    assert [(place.host, place.stage) for place in places] == [("a", None), ("b", 0), ("c", 1)]


def test_nsfs_alone_say_how_many_stages_there_are() -> None:
    _, places = lay_out(config(chain={"source": "a", "nsfs": ["b", "b", "c"], "sink": "d"}))
    assert hosts_of(places) == ["a", "b", "b", "c", "d"]


def test_without_nsfs_the_hosts_between_are_passed_in_their_order() -> None:
    _, places = lay_out(config(hosts=["a", "b", "c", "d"], chain={"source": "c", "sink": "a"}))
    assert hosts_of(places) == ["c", "b", "d", "a"]


def test_more_hosts_than_places_leave_the_last_ones_between_unused() -> None:
    hosts, places = lay_out(config(hosts=["a", "b", "c", "d"], split={"stages": 3}))
    assert hosts == ("a", "b", "c", "d")
    assert hosts_of(places) == ["a", "b", "d"]


def test_all_members_may_share_one_host() -> None:
    hosts, places = lay_out(config(hosts=["a"], split={"stages": 3}, chain={"nsfs": ["a"]}))
    assert hosts == ("a",)
    assert hosts_of(places) == ["a", "a", "a"]


def test_hosts_named_in_the_chain_only_are_listed_once() -> None:
    hosts, _ = lay_out(config(split={"stages": 4}, chain={"source": "a", "nsfs": ["b", "a"], "sink": "b"}))
    assert hosts == ("a", "b")


@pytest.mark.parametrize(
    ("changes", "wording"),
    [
        (
            {},
            "split: say where to cut: 'cut' with names of modules, 'stages' with a number, or 'hosts' with one host"
            " per stage",
        ),
        (
            {"split": {"stages": 1}},
            "split: 1 stage cannot make a chain, which has a source and a sink; make two stages or more, or set"
            " chain.stage_at_source to false",
        ),
        (
            {"hosts": ["a"]},
            "split: 1 stage cannot make a chain, which has a source and a sink; make two stages or more, or set"
            " chain.stage_at_source to false",
        ),
        (
            {"hosts": ["a"], "chain": {"stage_at_source": False}},
            "split: 0 stages cannot make a chain, which has a source and a sink; make one stage or more",
        ),
        (
            {"split": {"stages": 4}, "hosts": ["a", "b", "c"], "chain": {"nsfs": ["b"]}},
            "chain.nsfs: 1 host for 2 NSFs: 4 stages, one of them at the sink, one at the source",
        ),
        (
            {"split": {"stages": 2}, "hosts": ["a", "b", "c"], "chain": {"nsfs": ["b", "b"], "stage_at_source": False}},
            "chain.nsfs: 2 hosts for 1 NSF: 2 stages, one of them at the sink",
        ),
        (
            {"split": {"stages": 3}, "chain": {"source": "a", "sink": "b"}},
            "chain: without 'hosts', name source, nsfs and sink, or none of them",
        ),
        (
            {"chain": {"nsfs": ["b"]}},
            "chain: without 'hosts', name source, nsfs and sink, or none of them",
        ),
        (
            {"split": {"stages": 5}, "hosts": ["a", "b", "c"]},
            "hosts: 1 host between source and sink for 3 NSFs; add hosts, or name the NSFs' hosts in chain.nsfs (a"
            " host may stand there more than once)",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_told_with_what_would(changes: dict[str, Any], wording: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lay_out(config(**changes))
    assert str(caught.value) == wording


def test_each_member_gets_its_stage_and_what_it_sends_onward() -> None:
    plan = planned(config(split={"stages": 3}))
    assert [m.parameters for m in plan.members] == [1000, 1001, 1002]
    assert [(m.forward_ms, m.backward_ms) for m in plan.members] == [(10.0, 20.0), (11.0, 21.0), (12.0, 22.0)]
    assert [m.bytes_onward for m in plan.members] == [100, 101, 0]
    assert (plan.source.place.role, plan.sink.place.role) == ("source", "sink")


def test_a_source_without_a_stage_sends_the_raw_inputs() -> None:
    plan = planned(config(split={"stages": 2}, chain={"stage_at_source": False}))
    assert [m.bytes_onward for m in plan.members] == [7, 100, 0]
    assert (plan.source.parameters, plan.source.threads) == (0, 1)


def test_stages_on_one_host_share_its_cpus() -> None:
    chain = {"source": "a", "nsfs": ["b", "b", "b"], "sink": "c"}
    plan = planned(config(hosts=["a", "b", "c"], chain=chain), {"a": 4, "b": 8, "c": 1})
    assert [m.threads for m in plan.members] == [4, 2, 2, 2, 1]


def test_a_stage_has_a_thread_even_where_there_are_fewer_cpus_than_stages() -> None:
    plan = planned(config(hosts=["a"], split={"stages": 3}, chain={"nsfs": ["a"]}), {"a": 2})
    assert [m.threads for m in plan.members] == [1, 1, 1]


def test_a_source_without_a_stage_takes_no_share_of_its_host() -> None:
    job = config(hosts=["a"], split={"stages": 2}, chain={"nsfs": ["a"], "stage_at_source": False})
    assert [m.threads for m in planned(job, {"a": 8}).members] == [1, 4, 4]


def test_as_many_micro_batches_are_in_flight_as_there_are_stages_unless_told() -> None:
    assert planned(config(split={"stages": 4})).in_flight == 4
    assert planned(config(split={"stages": 4}, train={"in_flight": 2})).in_flight == 2


def test_the_same_job_has_the_same_plan() -> None:
    job = config(split={"stages": 3}, model={"factory": "a:b", "args": {"x": 1, "y": 2}})
    again = config(model={"args": {"y": 2, "x": 1}, "factory": "a:b"}, split={"stages": 3})
    assert planned(job) == planned(again)


def test_the_schema_is_the_digest_that_the_protocol_describes() -> None:
    agreed = (
        b'{"cut": ["layer1"], "members": [["source", null], ["nsf1", 0], ["sink", 1]],'
        b' "model": {"args": {}, "factory": "my.models:Net"}}'
    )
    plan = planned(config(split={"stages": 2}, chain={"stage_at_source": False}))
    assert plan.schema == hashlib.sha256(agreed).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"factory": "my.models:Other"}},
        {"model": {"factory": "my.models:Net", "args": {"width": 9}}},
        {"split": {"stages": 4}},
        {"split": {"stages": 2}, "chain": {"stage_at_source": False}},
    ],
)
def test_the_schema_changes_with_what_members_must_agree_on(changes: dict[str, Any]) -> None:
    assert planned(config(**{"split": {"stages": 3}, **changes})).schema != planned(config(split={"stages": 3})).schema


def test_the_schema_changes_with_the_cut() -> None:
    job = config(split={"stages": 3})
    other = Profile(("layer1", "layer3"), measured(3).stages, (100, 101), (), 7)
    cpus = dict.fromkeys(lay_out(job)[0], 1)
    assert build(job, other, cpus, 100).schema != build(job, measured(3), cpus, 100).schema


def test_the_schema_does_not_change_with_hosts_or_measured_times() -> None:
    job, moved = config(split={"stages": 2}), config(hosts=["x", "y"])
    slower = Profile(("layer1",), (StageProfile(1000, 99.0, 99.0), StageProfile(1001, 99.0, 99.0)), (100,), (), 7)
    assert planned(job).schema == planned(moved, 1).schema == build(job, slower, {"n0": 1, "n1": 1}, 100).schema


def test_the_plan_is_plain_values() -> None:
    plan = planned(config(split={"stages": 3}))
    assert json.loads(json.dumps(plan.document())) == json.loads(json.dumps(asdict(plan)))


def test_the_table_has_a_line_per_member_with_its_host_and_cut() -> None:
    headline, _, columns, *lines = render(planned(config(split={"stages": 3}, name="job"))).splitlines()
    assert headline == "job: 3 stages, 3,003 parameters, 3 hosts, fabric direct, at most 3 micro-batches in flight"
    assert columns.split()[:3] == ["hop", "member", "host"]
    assert [line.split()[:4] for line in lines] == [
        ["0", "source", "n0", "input"],
        ["1", "nsf1", "n1", "layer1"],
        ["2", "sink", "n2", "layer2"],
    ]
    assert lines[-1].endswith(" -")
