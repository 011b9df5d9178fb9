"""One line that says what broke first, from what the members of a broken chain still tell."""

from __future__ import annotations

from itertools import permutations

import pytest

from msl.actors.diagnosis import Obituary, diagnose
from msl.actors.member import Report
from msl.pipeline.fault import Fault


def fault(kind: str, stage: str, message: str, step: int = 17) -> Fault:
    return Fault(kind, stage, f"host-of-{stage}", step, 2, message)


def reports(*told: Report) -> dict[str, Report]:
    return {report.name: report for report in told}


def report(name: str, told: Fault | None = None, step: int = 17) -> Report:
    return Report(name, step=step, fault=told)


CLOSED = fault("NetworkError", "source", "nsf1 on host n1 closed the connection")
RESET = fault("NetworkError", "sink", "the connection to nsf1 on host n1 broke: Connection reset by peer")
GARBLED = fault("ProtocolError", "nsf2", "a BACKWARD frame that answers nothing")
CAUSE = fault("StageError", "nsf1", "the loss is nan")


def test_a_dead_host_is_named_before_all_that_follows_from_it() -> None:
    living = reports(report("source", CLOSED), report("sink", RESET))
    dead = [Obituary("n3", "nsf3", "killed"), Obituary("n1", "nsf1", "the actor died")]
    assert diagnose(living, dead, {"n1": ["nsf1"]}) == ("host n1, stage nsf1, step 17: the raylet of the host is gone")


def test_a_dead_host_is_named_with_all_its_stages() -> None:
    assert diagnose(reports(report("source", CLOSED)), [], {"n2": ["nsf2", "nsf3"]}) == (
        "host n2, stage nsf2 and nsf3, step 17: the raylet of the host is gone"
    )


def test_a_dead_member_is_named_with_its_cause_before_the_faults_of_the_living() -> None:
    living = reports(report("source", CLOSED), report("nsf2", CAUSE))
    dead = [Obituary("n1", "nsf1", "killed by signal 9"), Obituary("n4", "sink", "gone")]
    assert diagnose(living, dead, {}) == "host n1, stage nsf1, step 17: the stage died: killed by signal 9"


@pytest.mark.parametrize("order", list(permutations([CLOSED, RESET, GARBLED, CAUSE])))
def test_the_cause_is_told_and_not_its_consequences_whoever_answers_first(order: tuple[Fault, ...]) -> None:
    living = reports(*(report(told.stage, told) for told in order))
    assert diagnose(living, [], {}) == "host host-of-nsf1, stage nsf1, step 17, micro-batch 2: the loss is nan"


def test_of_consequences_alone_the_first_is_told() -> None:
    living = reports(report("source", CLOSED), report("nsf1"), report("sink", RESET))
    assert diagnose(living, [], {}) == str(CLOSED)
    assert str(CLOSED).endswith("step 17, micro-batch 2: nsf1 on host n1 closed the connection")


def test_the_step_is_the_furthest_that_a_living_member_knows() -> None:
    living = reports(report("source", step=41), report("nsf1", step=42), report("sink", step=40))
    assert diagnose(living, [Obituary("n2", "nsf2", "killed")], {}).startswith("host n2, stage nsf2, step 42: ")
    assert diagnose(living, [], {"n2": ["nsf2"]}).startswith("host n2, stage nsf2, step 42: ")
    assert diagnose(living, [], {}, TimeoutError("no answer")) == "step 42: the chain broke: no answer"


def test_what_the_driver_saw_is_told_if_nobody_knows_more() -> None:
    assert diagnose({}, [], {}, RuntimeError("actor call\n failed")) == "step 0: the chain broke: actor call failed"
    assert diagnose({}, [], {}) == "step 0: the chain broke: no member tells why"
    assert diagnose(reports(report("source", CAUSE)), [], {}, RuntimeError("x")) == str(CAUSE)


def test_an_endless_error_is_cut_to_a_line() -> None:
    told = diagnose({}, [], {}, RuntimeError("traceback\n" * 1000))
    assert "\n" not in told
    assert len(told) < 350
