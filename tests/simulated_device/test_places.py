"""Backward runs in a thread of torch's own, where no line is the user's."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_bninvariants import FrozenStateChanged, frozen_bn
from tests.simulated_device.models import batch, small_model


class Checkpointed(nn.Module):
    """Its forward is run again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_model()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=True)


def test_a_forward_in_backward_is_not_placed_in_torchs_own_code() -> None:
    model = Checkpointed().eval()

    def step() -> None:
        y = model(batch().requires_grad_())
        model.inner[1].train()
        y.sum().backward()

    with pytest.raises(FrozenStateChanged) as broken, frozen_bn(model):
        step()
    said = str(broken.value)
    assert "until backward is over" in said
    assert "torch/" not in said
    assert "_wrapped_call_impl" not in said
