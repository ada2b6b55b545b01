"""A module runs in eval, unseen by guards, and all that its runs change is put back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError, frozen
from pytest_bninvariants.evaluation.eval_mode import in_eval


class Counting(nn.BatchNorm1d):
    """Write to its state in eval as well, and draw a random number."""

    def forward(self, x: Tensor) -> Tensor:
        self.num_batches_tracked += 1
        with torch.no_grad():
            self.weight.add_(torch.rand(()))
        return super().forward(x)


def test_modes_state_and_generators_are_put_back(net: Any, batch: Tensor) -> None:
    net.neck = Counting(3)
    net.backbone.train()
    modes = [module.training for module in net.modules()]
    state, generator = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with in_eval(net):
        assert not any(module.training for module in net.modules())
        assert not net(batch).requires_grad
        assert net.neck.num_batches_tracked == state["neck.num_batches_tracked"] + 1
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert net(batch).requires_grad


def test_an_error_puts_everything_back_too(net: Any) -> None:
    net.train()
    with pytest.raises(ValueError, match="mine"), in_eval(net):
        raise ValueError("mine")
    assert all(module.training for module in net.modules())


def test_a_guard_does_not_see_what_runs(net: Any, batch: Tensor) -> None:
    with pytest.raises(GateError, match="nothing ran"), frozen(net), in_eval(net):
        net(batch)


def test_lazy_parameters_are_refused() -> None:
    with (
        pytest.raises(GateError, match="LazyLinear has lazy parameters without values"),
        in_eval(nn.LazyLinear(2)),
    ):
        pass
