"""Members of a chain when their own code fails: the chain ends at once, and everybody knows why."""

from __future__ import annotations

import time

import pytest

from msl.config import Config
from msl.data import Splits
from msl.errors import StageError
from msl.pipeline.build import build_data
from msl.pipeline.nsf import NsfLoop
from tests.chains import make_config, make_plan, open_chain

JOB = {
    "model": {"factory": "tests.unit.toys:Explodes"},
    "data": {
        "factory": "msl.data.synthetic:random_images",
        "args": {"num_train": 24, "num_test": 4, "shape": [1, 8, 8], "num_classes": 3},
    },
    "split": {"cut": ["fuse", "head"], "leaf_modules": ["fuse"]},
    "train": {"batch_size": 8, "micro_batch": 4},
}


def test_an_error_in_the_models_own_code_reaches_the_source_with_its_place_and_traceback() -> None:
    with open_chain(make_config(**JOB)) as members:
        with pytest.raises(StageError, match=r"host n1, stage nsf1, step \d+, micro-batch \d+: ValueError: boom"):
            members[0].train_epoch(0, 0)
        for member in members:
            member.wait(5.0)
            fault = member.status().fault
            assert fault is not None
            assert fault.stage == "nsf1"
            assert "toys.py" in fault.detail
        with pytest.raises(StageError, match="boom"):  # the chain stays broken, and says the same
            members[0].train_epoch(0, 0)


def test_a_member_whose_failing_fails_does_not_keep_its_neighbours_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_loop: object, _error: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(NsfLoop, "fail", fails)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    with open_chain(make_config(**JOB)) as members:
        begin = time.monotonic()
        with pytest.raises(StageError, match="nsf1 on host n1 closed the connection"):
            members[0].train_epoch(0, 0)
        assert time.monotonic() - begin < 5.0


def test_only_the_source_loads_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(**{**JOB, "model": {"factory": "tests.unit.toys:Awkward"}, "split": {"cut": ["mix", "head"]}})
    plan = make_plan(config)
    loaded = []

    def load(config: Config) -> Splits:
        loaded.append(config)
        return build_data(config)

    monkeypatch.setattr("msl.actors.member.build_data", load)
    with open_chain(config, plan) as members:
        members[0].train_epoch(0, 0)
    assert len(members) == 3
    assert len(loaded) == 1
