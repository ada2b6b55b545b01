"""The device's random generator is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import same_output
from tests.simulated_device.models import DEVICE, batch


class Draws(nn.Module):
    """A model that draws from the generator of its input's device."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3, device=x.device)
        return self.linear(x)


@pytest.mark.parametrize("device", [DEVICE, f"{DEVICE}:1"])
def test_same_output_puts_it_back(device: str) -> None:
    model, x = Draws().to(device), batch(device=device)
    before = torch.simdev.get_rng_state(device).clone()
    with same_output(model, x):
        model.linear(x)
    assert torch.equal(torch.simdev.get_rng_state(device), before)
