"""A minute of mixed load; scripts/soak runs it for as long as one likes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.command import nothing_left

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.parametrize(
    "fabric",
    [
        "direct",
        pytest.param(
            "sfc",
            marks=[pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces")],
        ),
    ],
)
def test_a_minute_of_mixed_load_leaves_nothing_and_grows_nothing(fabric: str) -> None:
    script = Path(__file__).parents[2] / "scripts" / "soak"
    with nothing_left("soak"):
        done = subprocess.run(
            [script, "--minutes", "1", "--fabric", fabric], capture_output=True, text=True, timeout=280
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " requests/s, p50 " in done.stdout
    assert done.stdout.count("RSS of ") == 3
