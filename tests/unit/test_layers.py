"""Imports point down: which layers of msl, and which libraries, each part of msl may import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "msl").rglob("*.py"))

# From the bottom up; `errors` is open to all. "" is msl/__init__.py, which everything imports; it gives out the client.
LAYERS: dict[str, set[str]] = {
    "": {"client"},
    "errors": set(),
    "config": set(),
    "plan": {"config"},
    "steering": {"config", "plan"},
    "net": {"config", "plan", "steering"},
    "client": {"config", "plan", "net"},
    "models": {"config", "plan", "net"},
    "data": {"config", "plan", "net"},
    # Not models: a model comes by its import path, so that users' own are no different from ours.
    "pipeline": {"config", "plan", "net", "client", "data"},
    "metrics": {"config", "plan", "steering", "net", "pipeline"},
    "actors": {"config", "plan", "steering", "net", "models", "data", "pipeline", "metrics", "client"},
    "bench": {"config", "plan", "steering", "net", "models", "data", "pipeline", "metrics", "actors", "client"},
    "cli": {"config", "plan", "steering", "net", "models", "data", "pipeline", "metrics", "actors", "bench", "client"},
    "__main__": {"cli"},
}
LIBRARIES: dict[str, set[str]] = {
    "click": {"cli"},
    "rich": {"cli"},
    "ray": {"actors", "metrics", "bench"},
    # The client takes torch tensors where there are some, and does without torch where there are none.
    "torch": {"client", "pipeline", "models", "data", "metrics", "bench"},
    "pyroute2": {"net"},
    "bcc": {"net"},
}


def layer_of(path: Path) -> str:
    """`net` for msl/net/frame.py, `errors` for msl/errors.py, "" for msl/__init__.py."""
    name = path.with_suffix("").parts[1]
    return "" if name == "__init__" else name


def imports_of(tree: ast.AST, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and dotted parts of all that is imported at any depth: `from msl import x` is ["msl", "x"]."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            # Each leading dot goes one package up from the module: msl/net/frame.py, one dot: msl.net.
            package = list(path.parts[: -node.level]) if node.level else []
            origin = package + (node.module.split(".") if node.module else [])
            for alias in node.names:
                yield node.lineno, [*origin, alias.name]


def violations(source: str, path: Path) -> list[str]:
    """What `source`, as the module at `path`, imports against the tables above, as `file:line: reason`."""
    layer = layer_of(path)
    if layer not in LAYERS:
        return [f"{path}:1: {layer} is in no layer; give it a row in {Path(__file__).name}"]
    allowed = LAYERS[layer] | {layer, "errors"}
    found = []
    for line, (top, *rest) in imports_of(ast.parse(source), path):
        if top in LIBRARIES and layer not in LIBRARIES[top]:
            found.append(f"{path}:{line}: {top} is for {', '.join(sorted(LIBRARIES[top]))} only")
        # `from msl import __version__` names no layer and is open to all.
        elif top == "msl" and rest and rest[0] != "__version__" and rest[0] not in allowed:
            found.append(f"{path}:{line}: {layer or 'msl/__init__.py'} may not import msl.{rest[0]}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path: Path) -> None:
    found = violations((ROOT / path).read_text(encoding="utf-8"), path)
    assert not found, "\n".join(found)


def test_the_walk_finds_the_modules_of_msl() -> None:
    assert {Path("msl/__init__.py"), Path("msl/errors.py")} <= set(MODULES)


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("msl/net/a.py", "import torch.nn", "msl/net/a.py:1: torch is for bench, client, data,"),
        ("msl/pipeline/a.py", "from ray.util import queue", "msl/pipeline/a.py:1: ray is for actors,"),
        ("msl/config/a.py", "\ndef f():\n    import click", "msl/config/a.py:3: click is for cli only"),
        ("msl/plan/a.py", "from msl.net import frame", "msl/plan/a.py:1: plan may not import msl.net"),
        ("msl/plan/a.py", "from msl import net", "msl/plan/a.py:1: plan may not import msl.net"),
        ("msl/plan/a.py", "from ..net.frame import Frame", "msl/plan/a.py:1: plan may not import msl.net"),
        ("msl/plan/__init__.py", "from .. import net", "msl/plan/__init__.py:1: plan may not import msl.net"),
        ("msl/pipeline/a.py", "import msl.models.resnet", "pipeline may not import msl.models"),
        ("msl/errors.py", "import msl.config", "errors may not import msl.config"),
        ("msl/__init__.py", "from msl.net import frame", "msl/__init__.py may not import msl.net"),
        ("msl/utils.py", "", "msl/utils.py:1: utils is in no layer"),
    ],
)
def test_a_forbidden_import_is_told_with_file_and_line(path: str, source: str, reason: str) -> None:
    (found,) = violations(source, Path(path))
    assert reason in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("msl/net/a.py", "import socket, torchless\nfrom msl import __version__, errors"),
        ("msl/net/a.py", "from . import frame\nfrom .frame import Frame\nfrom ..plan import build"),
        ("msl/actors/a.py", "import ray\nfrom msl.pipeline.stage import Stage"),
        ("msl/__main__.py", "from msl.cli import main"),
    ],
)
def test_an_allowed_import_passes(path: str, source: str) -> None:
    assert violations(source, Path(path)) == []


@pytest.mark.parametrize("module", ["msl", "msl.cli"])
def test_importing_it_loads_neither_torch_nor_ray(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({{'torch', 'ray'}} & set(sys.modules)))"
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_the_client_loads_neither_torch_nor_ray() -> None:
    script = "import sys; from msl import Client; print(*sorted({'torch', 'ray'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_the_package_alone_loads_no_numpy() -> None:
    script = "import sys, msl; print('numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout == "False\n", run.stderr
