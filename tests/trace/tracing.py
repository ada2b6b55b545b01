"""Models and helpers of the tests of tracing."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, Guard, Verdict, frozen
from pytest_bninvariants.run_config import Trace, override
from pytest_bninvariants.verdict import Place, Write

Step = Callable[[Any], object]
ALL = Trace()


def traced(model: nn.Module, step: Step, *, names: frozenset[str] | None = None) -> Verdict:
    def whole() -> None:
        model(torch.ones(2, 3))
        step(model)

    return broken(frozen(model), whole, Trace(names=names)).verdict


def broken(
    guard: Guard, step: Callable[[], object], trace: Trace | None = ALL
) -> FrozenStateChanged:
    with override(trace=trace), pytest.raises(FrozenStateChanged) as caught, guard:
        step()
    return caught.value


def line_of(write: Write, file: str) -> str:
    return line_at(write.place, file)


def line_at(place: Place | None, file: str) -> str:
    assert place is not None
    assert place.file == file
    return linecache.getline(place.file, place.line).strip()


def add(model: Any) -> None:
    with torch.no_grad():
        model.fc.weight.add_(1)


def copy(model: Any) -> None:
    model.mean.copy_(torch.ones(3))


class Loud(Tensor):
    pass


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3, 2)
        self.register_buffer("mean", torch.arange(3.0))
        self.loud = self.mean.as_subclass(Loud)
        self.eval()

    def forward(self, batch: Tensor) -> Tensor:
        return self.fc(batch)
