"""The proxy with a fault put in: a patched copy of its source, for tests that show that a fault would be noticed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from msl.net.sfc import proxy


@contextlib.contextmanager
def patched(tmp_path: Path, *changes: tuple[str, str, str]) -> Iterator[None]:
    """While it lasts, proxies are loaded from a copy of the source.

    Args:
        tmp_path: for the copy.
        changes: file, what stands in it, and what shall stand there instead; every place is changed.
    """
    folder = tmp_path / "bpf"
    shutil.copytree(proxy.source_folder(), folder)
    for name, before, after in changes:
        text = (folder / name).read_text()
        assert before in text, f"{name} has no {before!r} any more: what does this test show now?"
        (folder / name).write_text(text.replace(before, after))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "source_folder", lambda: folder)
        yield
