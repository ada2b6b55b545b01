"""No test of tracing leaves a listener behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pytest_bninvariants.trace import assignments


@pytest.fixture(autouse=True)
def _assignments_are_left_alone() -> Iterator[None]:
    yield
    assert assignments._listeners == []
    assert "data" not in vars(torch.Tensor)
