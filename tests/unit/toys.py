"""Small models that are awkward to cut, and their jobs; used by import path as a user's would be."""

from __future__ import annotations

import torch
from torch import nn


class Awkward(nn.Module):
    """Skips, an in-place first operation, a tuple, a plain number that crosses, dropout, a frozen layer."""

    def __init__(self, channels: int = 4, classes: int = 3, dropout: float = 0.3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.frozen = nn.Conv2d(channels, channels, 1).requires_grad_(False)
        self.act = nn.ReLU(inplace=True)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(channels, classes)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples = x.size(0)
        x = self.frozen(self.stem(x))
        skip = x
        y = self.act(x)
        y = self.norm(self.mix(y)) + skip
        first, second = y.chunk(2, 1)
        y = torch.cat([second, first + skip[:, :2]], 1)
        y = self.drop(y.mean((2, 3)).view(samples, -1))
        return self.head(y)


class Recurrent(nn.Module):
    """A module that returns nested tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, _ = self.lstm(x[:, 0])
        return self.head(rows[:, -1])


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


class DataDependent(nn.Module):
    """Control flow that depends on data cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gate(x).flatten(1))


class Gate(nn.Module):
    """Branches on a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class Aliasing(nn.Module):
    """With one sample, a parameter's gradient is a view of the gradient of the stage's output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 6)
        self.offset = nn.Parameter(torch.zeros(6))
        self.marker = nn.Identity()
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x[:, 0, 0]) + self.offset.view(1, 6)
        return self.last(self.marker(y))


def sequential() -> nn.Sequential:
    """Named children, one of which cannot be traced."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(inplace=True), _Twice(), nn.Linear(16, 3))


class _Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if bool(x.sum() > -1e9) else x


def functional_dropout() -> nn.Module:
    """Dropout as a function, whose mode a trace would freeze."""
    return _FunctionalDropout()


class _FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(nn.functional.dropout(self.a(x), 0.5, self.training))


class ChannelsLast(nn.Module):
    """Works in channels-last memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 3)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x.contiguous(memory_format=torch.channels_last))
        return self.head(self.b(y).flatten(1))


class Aliased(nn.Module):
    """A view is taken, then its base is changed in place: both cross a cut between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        view = x[:, :2]
        x = self.act(x)
        return self.head((view + x[:, 2:]).mean((2, 3)))


class TupleCrosses(nn.Module):
    """A tuple is handed whole to a later module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _Pair()
        self.second = _Sum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class _Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.unbind(x)


class _Sum(nn.Module):
    def forward(self, pair: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.stack(pair).sum(0)


class Explodes(nn.Module):
    """Raises in its sixth forward pass in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 2, 3)
        self.fuse = _Fuse()
        self.head = nn.Linear(2 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.fuse(self.body(x)).flatten(1))


class _Fuse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += self.training and x.requires_grad
        if self.passes > 5:  # the four passes that measure a model go well
            raise ValueError("boom")
        return x * 1
