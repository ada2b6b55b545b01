"""Judge steps of a BN layer beside something else that can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bninvariants import FrozenStateChanged, Verdict, frozen_bn

BATCH = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(3))


class Pair(nn.Module):
    """A BN layer of a test's choice, and something else that can run."""

    def __init__(self, bn: nn.Module) -> None:
        super().__init__()
        self.bn = bn
        mean = getattr(bn, "running_mean", None)
        if mean is not None and not is_lazy(mean):
            mean.fill_(0.25)  # statistics of a new layer are a hazard of their own
        self.other = nn.Linear(5, 5)

    def forward(self, batch: Tensor) -> Tensor:
        return self.other(self.bn(batch))


def judged(
    model: nn.Module,
    step: Callable[[Any], object],
    *modules: str,
    guard: Any = frozen_bn,
    **options: Any,
) -> Verdict:
    """Return the verdict on a step, whether it holds or not."""
    made = guard(model, *modules, **options)
    raised = False
    try:
        with made:
            step(model)
    except FrozenStateChanged:
        raised = True
    assert made.verdict is not None
    assert made.verdict.holds != raised
    return made.verdict


def run(model: nn.Module) -> None:
    model(BATCH)


def found(verdict: Verdict) -> set[tuple[str, str]]:
    return {(change.name, change.kind) for change in verdict.changes}


def said(verdict: Verdict) -> dict[str, str]:
    return {hazard.name: hazard.text for hazard in verdict.hazards}


BATCH_STATISTICS = {("bn", "batch-statistics")}


class OwnForward(nn.BatchNorm1d):
    """Do as torch does, in code of its own."""

    def forward(self, batch: Tensor) -> Tensor:
        batch_statistics = self.training or self.running_mean is None
        return F.batch_norm(
            batch,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            batch_statistics,
            self.momentum or 0.0,
            self.eps,
        )


class FrozenByBuffers(nn.Module):
    """Normalise in the way of FrozenBatchNorm2d, without a call of torch.batch_norm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))
        self.register_buffer("running_var", torch.ones(2))

    def forward(self, batch: Tensor) -> Tensor:
        return (batch - self.running_mean[:, None]) * self.running_var[:, None].rsqrt()
