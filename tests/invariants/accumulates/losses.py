"""What the tests of accumulates share: losses, a model around a norm, and a verdict that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pytest_bninvariants import InvariantBroken, Verdict, accumulates


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], ignore_index=-1)


def broken(*args: Any, **options: Any) -> Verdict:
    with pytest.raises(InvariantBroken) as failure:
        accumulates(*args, **options)
    return failure.value.verdict


def around(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv1d(2, 4, 1), norm, nn.ReLU(), nn.Conv1d(4, 2, 1))
