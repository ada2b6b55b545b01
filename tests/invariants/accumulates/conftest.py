"""The batch of these tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def seven() -> Tensor:
    return torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(2))
