"""Package metadata and dependencies of msl; `scripts/setup` installs them into .venv."""

import re
from pathlib import Path

from setuptools import find_packages, setup


def read_version() -> str:
    """`__version__` of msl/__init__.py, read as text: nothing that msl imports is installed yet."""
    source = (Path(__file__).parent / "msl" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise RuntimeError('msl/__init__.py: no line __version__ = "..."')
    return match.group(1)


EXTRAS = {
    "examples": ["scikit-learn", "pillow"],  # the digits data set; image files
    "bench": ["matplotlib", "scipy"],
    "dev": ["pytest", "pytest-timeout", "hypothesis", "ruff", "mypy", "types-PyYAML", "types-psutil"],
}

setup(
    name="msl",
    version=read_version(),
    description="Multi-hop split learning and split inference over a chain of hosts, on Ray",
    author="The msl authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["msl*"]),
    python_requires=">=3.11",
    install_requires=[
        # Exact: every host of a cluster must run the same Ray, and a stage's weights the same torch.
        "torch==2.13.0",
        "ray[default]==2.60.0",
        # bcc, the kernel path's compiler, is not here: the PyPI package of that name is unrelated.
        "pyroute2",
        "tensorboard",
        "click",
        "rich",
        "pydantic>=2",
        "pyyaml",
        "safetensors",
        "numpy",
        "psutil",
        "networkx",
    ],
    extras_require={**EXTRAS, "all": sorted({package for extra in EXTRAS.values() for package in extra})},
    entry_points={"console_scripts": ["msl = msl.cli:main"]},
)
