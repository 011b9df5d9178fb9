"""What the members of a chain must agree on before they talk."""

from __future__ import annotations

import hashlib

import msl
from msl.net.frame import VERSION
from msl.pipeline.runtime import torch_version
from msl.plan import Plan


def schema_of(plan: Plan) -> str:
    """Digest of the plan's own schema and of the versions that decide what is computed; see docs/protocol.md."""
    return hashlib.sha256(f"{plan.schema} {VERSION} {msl.__version__} {torch_version()}".encode()).hexdigest()
