"""What the tests of same_output share."""

from __future__ import annotations

import pytest
from torch import Tensor, nn


def message(caught: pytest.ExceptionInfo[BaseException]) -> str:
    return " ".join(str(caught.value).split())


def train_forward(module: nn.Module, batch: Tensor) -> None:
    module.train()
    module(batch)
