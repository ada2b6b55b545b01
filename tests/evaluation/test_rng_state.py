"""Whether any random generator was drawn from is seen, and all are put back."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from pytest_bninvariants.evaluation.rng_state import preserved_rng

DRAWS: dict[str, Callable[[], object]] = {
    "python": random.random,
    "numpy": lambda: np.random.rand(),
    "torch": lambda: torch.rand(1).item(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_draw_is_seen_and_undone(draw: Callable[[], object]) -> None:
    with preserved_rng(nn.Linear(1, 1)) as generators:
        assert not generators.moved()
        first = draw()
        assert generators.moved()
    assert draw() == first


def test_an_error_undoes_it_too() -> None:
    def draw_and_raise() -> None:
        with preserved_rng(nn.Identity()):
            torch.rand(1)
            raise ValueError("mine")

    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="mine"):
        draw_and_raise()
    assert torch.equal(torch.get_rng_state(), before)
