"""Settings of torch that hold for a whole process."""

from __future__ import annotations

import torch
from torch import nn

Module = nn.Module


def set_threads(threads: int) -> None:
    """Threads within an operation; called before the process computes anything."""
    torch.set_num_threads(threads)


def torch_version() -> str:
    """Torch's version; members with different ones may compute different bits."""
    return str(torch.__version__)
