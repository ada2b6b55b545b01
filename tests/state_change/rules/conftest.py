"""A model with a frozen branch."""

from __future__ import annotations

import pytest
import torch

from tests.state_change.rules.branches import (
    Branches,
)


@pytest.fixture
def model() -> Branches:
    torch.manual_seed(0)
    return Branches()
