"""The decision of a path: it finds relief, leaves dead ways at once, and otherwise keeps still."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msl.plan.paths import Path, mirrored
from msl.steering.cost import congestion
from msl.steering.decide import History, Policy, decide
from msl.steering.health import Ways
from msl.steering.topology import receiving, sending
from tests.unit.network_model import RATE, Model, changes

LEAST_LOADED, LATENCY = Policy("least-loaded"), Policy("latency")


def full(model: Model, router: str, source: str, target: str) -> None:
    """Others fill a plane from one host to another."""
    model.others[sending(source), router] = model.others[router, receiving(target)] = RATE


def test_an_idle_network_is_left_alone() -> None:
    model = Model(4, 2)
    assert changes(model.run(LEAST_LOADED, 20)) == []


def test_congestion_moves_the_hops_and_directions_that_suffer_and_no_other() -> None:
    model = Model(5, 2)
    full(model, "r1", "n1", "n2")  # passed by n1 -> n2, by the answers of n1 to n0, and by those of n3 to n2
    decisions = model.run(LEAST_LOADED, 10)
    assert sorted(changes(decisions)) == [(0, "backward", ("r2",)), (1, "forward", ("r2",)), (2, "backward", ("r2",))]
    first = next(c for d in decisions for c in d.changes)
    assert first.reason == "n1->r1 is 100% full, through r2 it would be 10%"
    assert not first.urgent
    assert model.path.forward == ((), ("r2",), (), ())
    assert model.path.back == (("r2",), (), ("r2",), ())


def test_the_relief_comes_within_a_second() -> None:
    model = Model(4, 2)
    model.run(LEAST_LOADED, 3)
    full(model, "r1", "n0", "n1")
    begin = model.now_s
    while not model.step(LEAST_LOADED, 0.1).changes:
        assert model.now_s < begin + 1.0
    assert model.path.forward[0] == ("r2",)


def test_a_chain_does_not_flee_from_its_own_traffic() -> None:
    model = Model(2, 2, forward_mbit=950, backward_mbit=950)
    assert changes(model.run(LEAST_LOADED, 20)) == []


def test_a_small_advantage_is_not_worth_a_change() -> None:
    model = Model(3, 2)
    full(model, "r1", "n0", "n1")
    full(model, "r2", "n0", "n1")
    model.others[sending("n0"), "r2"] = 0.97 * RATE
    assert changes(model.run(LEAST_LOADED, 20)) == []


def test_a_short_burst_is_not_worth_a_change() -> None:
    model = Model(3, 2)
    for _ in range(20):
        full(model, "r1", "n0", "n1")
        assert not model.step(LEAST_LOADED, 0.2).changes
        model.others.clear()
        assert not model.step(LEAST_LOADED, 0.2).changes


def test_after_a_change_a_hop_stays_for_the_hold_down() -> None:
    model = Model(2, 3)
    full(model, "r1", "n0", "n1")
    while not model.step(LEAST_LOADED).changes:
        pass
    begin = model.now_s
    full(model, model.path.forward[0][0], "n0", "n1")
    while not model.step(LEAST_LOADED).changes:
        pass
    assert LEAST_LOADED.hold_s <= model.now_s - begin + 0.2 < LEAST_LOADED.hold_s + 1.0


def test_the_quicker_way_is_taken_under_the_policy_latency_in_both_directions() -> None:
    model = Model(3, 3, rtt_ms={"r1": 5.0, "r2": 3.0, "r3": 1.0})
    decisions = model.run(LATENCY, 5)
    assert sorted(changes(decisions)) == [
        (0, "backward", ("r3",)),
        (0, "forward", ("r3",)),
        (1, "backward", ("r3",)),
        (1, "forward", ("r3",)),
    ]
    assert model.path == mirrored([("r3",)] * 2)
    assert decisions[2].changes[0].reason == "5.00 ms as the routes lead, 1.00 ms through r3"


@pytest.mark.parametrize("policy", [LEAST_LOADED, LATENCY], ids=lambda policy: policy.kind)
def test_a_dead_router_is_left_at_once_by_all_hops(policy: Policy) -> None:
    model = Model(4, 2)
    model.run(policy, 3)
    model.dead.add("r1")
    decision = model.step(policy)
    assert model.path == mirrored([("r2",)] * 3)
    assert all(change.urgent for change in decision.changes)
    assert decision.changes[0].reason == "probes from n0 to n1 as the routes lead have no answer"


def test_when_every_way_is_dead_nothing_changes_and_it_is_said() -> None:
    model = Model(3, 2)
    model.dead |= {"r1", "r2"}
    before = model.path
    decisions = model.run(LEAST_LOADED, 5)
    assert changes(decisions) == []
    assert model.path == before
    assert decisions[-1].stuck[0].endswith("have no answer, and no other way is proven")


def test_a_way_that_has_recovered_is_not_gone_back_to_without_need() -> None:
    model = Model(4, 2)
    model.dead.add("r1")
    model.run(LEAST_LOADED, 1)
    model.dead.clear()
    assert changes(model.run(LEAST_LOADED, 20)) == []


def test_a_way_whose_large_packets_are_lost_is_dead() -> None:
    model = Model(2, 2)
    situation = model.situation()
    readings = model.readings()
    lost = tuple(
        probe if not probe.full_size or probe.way == ("r2",) else replace(probe, missed=9, in_a_row=0)
        for probe in readings[0].probes
    )
    ways = Ways([replace(readings[0], probes=lost)], 4)
    decision = decide(replace(situation, ways=ways), LEAST_LOADED, History())
    assert {c.after for c in decision.changes} == {("r2",)}
    assert decision.changes[0].reason == "large packets from n0 to n1 as the routes lead have no answer"


def test_a_path_that_would_be_too_long_is_not_taken() -> None:
    model = Model(4, 2)
    model.dead.add("r1")
    tight = replace(model.situation(), max_segments=4)
    decision = decide(tight, LEAST_LOADED, History())
    assert sum(len(way) + 1 for way in decision.path.forward) == 4
    assert decision.stuck


def test_the_same_inputs_give_the_same_decision() -> None:
    model = Model(4, 3)
    full(model, "r1", "n1", "n2")
    model.run(LEAST_LOADED, 0.4)
    situation = model.situation()
    assert decide(situation, LEAST_LOADED, model.history) == decide(situation, LEAST_LOADED, model.history)


loads = st.floats(0, RATE)


@st.composite
def models(draw: st.DrawFn) -> Model:
    model = Model(draw(st.integers(2, 5)), draw(st.integers(1, 4)), draw(st.floats(0, 1500)), draw(st.floats(0, 1500)))
    for edge in model.topology.rates_mbit:
        model.others[edge] = draw(loads)
    for hop in range(model.hosts - 1):
        way = draw(st.sampled_from([(), *((router,) for router in model.routers)]))
        model.path = model.path.with_forward(hop, way, draw(st.booleans()))
    return model


@settings(max_examples=40, deadline=None)
@given(models(), st.sampled_from([LEAST_LOADED, LATENCY]))
def test_under_constant_load_it_comes_to_rest_and_stays(model: Model, policy: Policy) -> None:
    places = 2 * (model.hosts - 1)
    first = model.run(policy, 10 * places, 0.5)
    assert len(changes(first)) <= 4 * places
    assert changes(model.run(policy, 30, 0.5)) == []


@settings(max_examples=40, deadline=None)
@given(models(), st.data())
def test_after_one_step_of_the_load_it_comes_to_rest_again(model: Model, data: st.DataObject) -> None:
    places = 2 * (model.hosts - 1)
    model.run(LEAST_LOADED, 10 * places, 0.5)
    edge = data.draw(st.sampled_from(sorted(model.topology.rates_mbit)))
    model.others[edge] = data.draw(loads)
    model.run(LEAST_LOADED, 10 * places, 0.5)
    assert changes(model.run(LEAST_LOADED, 30, 0.5)) == []


@settings(max_examples=40, deadline=None)
@given(models(), st.sets(st.sampled_from(["r1", "r2", "r3", "r4"])))
def test_after_a_failure_no_hop_stays_on_a_dead_way_if_another_is_alive(model: Model, dead: set[str]) -> None:
    model.dead |= dead
    model.step(LEAST_LOADED)
    alive = set(model.routers) - dead
    for way in (*model.path.forward, *model.path.back):
        assert not alive or not set(way or ("r1",)) & dead


@given(st.floats(0, 3), st.floats(0, 3))
def test_congestion_is_convex_and_rises(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert congestion(low) <= congestion(high)
    assert congestion((low + high) / 2) <= (congestion(low) + congestion(high)) / 2 + 1e-9


def test_a_path_with_a_way_back_of_its_own_mirrors_again_when_both_agree() -> None:
    path = mirrored([(), ()]).with_forward(1, ("r2",), keep_back=True)
    assert path == Path(((), ("r2",)), (None, ()))
    assert path.with_backward(1, ("r2",)) == mirrored([(), ("r2",)])
