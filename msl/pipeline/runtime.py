"""Settings of torch that hold for a process or a thread."""

from __future__ import annotations

import torch
from torch import nn

Module = nn.Module
Tensor = torch.Tensor


def set_threads(threads: int) -> None:
    """Threads within an operation.

    To be called in each thread that computes: the math libraries below torch keep a number for each thread, and
    one that computes with another number rounds differently.
    """
    torch.set_num_threads(threads)


def threads() -> int:
    """Threads within an operation of the calling thread."""
    return torch.get_num_threads()


def torch_version() -> str:
    """Torch's version; members with different ones may compute different bits."""
    return str(torch.__version__)
