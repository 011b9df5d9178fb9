"""Two minutes of mixed load; scripts/soak runs it for as long as one likes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from msl.net.requirements import first_lack
from tests.e2e.command import nothing_left

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FABRIC = "direct" if first_lack() is not None else "sfc"
"""The same program serves both; with `sfc` there are flow entries to be counted as well."""


def test_two_minutes_of_mixed_load_leave_nothing_and_grow_nothing() -> None:
    script = Path(__file__).parents[2] / "scripts" / "soak"
    with nothing_left("soak"):
        done = subprocess.run(
            [script, "--minutes", "2", "--fabric", FABRIC], capture_output=True, text=True, timeout=290
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " requests/s, p50 " in done.stdout
    assert done.stdout.count("RSS of ") == 3
