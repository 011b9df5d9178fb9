"""Seeds dropout by position, so that its masks depend neither on the cut nor on the order of the stages."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd


@dataclass
class Position:
    """Where in the training a forward pass stands; changed before each one."""

    step: int = 0
    micro_batch: int = 0


def seed_dropout(module: nn.Module, seed: int, position: Position) -> None:
    """Seed torch's generator before each dropout module by its name, the step and the micro-batch.

    Without it, a stage would draw from its own stream and the split run would differ from the unsplit one.

    Args:
        module: the unsplit model or a stage of it (both name their modules alike).
        seed: the job's seed.
        position: read at each forward pass.
    """
    for name, child in module.named_modules():
        if isinstance(child, _DropoutNd):
            digest = zlib.crc32(name.encode())

            def reseed(_module: nn.Module, _inputs: object, digest: int = digest) -> None:
                key = f"{seed}/{position.step}/{position.micro_batch}/{digest}".encode()
                torch.manual_seed(zlib.crc32(key) << 31 | zlib.adler32(key) & 0x7FFFFFFF)

            child.register_forward_pre_hook(reseed)
