"""What the tests of in_sync share: a step that trains, and ways to update a copy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pytest_bninvariants import InvariantBroken


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    model(torch.randn(8, 4) + 3).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def failure_text(judge: Callable[[], object]) -> str:
    with pytest.raises(InvariantBroken) as caught:
        judge()
    return " ".join(str(caught.value).split())


def hard_update(target: nn.Module, source: nn.Module, *, buffers: bool) -> None:
    with torch.no_grad():
        for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
            mine.copy_(theirs)
        for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
            if buffers:
                mine.copy_(theirs)


def ema_step(average: nn.Module, model: nn.Module, decay: float, *, buffers: bool = True) -> None:
    train(model)
    ema_update(average, model, decay, buffers=buffers)


def ema_update(average: nn.Module, model: nn.Module, decay: float, *, buffers: bool = True) -> None:
    with torch.no_grad():
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
            mine.mul_(decay).add_(theirs, alpha=1 - decay)
        for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
            if buffers:
                mine.copy_(theirs)


def average_all(average: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for mine, theirs in zip(
            [*average.parameters(), *average.buffers()],
            [*model.parameters(), *model.buffers()],
            strict=True,
        ):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)
