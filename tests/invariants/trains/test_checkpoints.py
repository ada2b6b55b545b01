"""A reentrant checkpoint behind frozen inputs gives what runs in it no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_bninvariants import trains
from tests.invariants.trains.steps import broken
from tests.watching import watching


class Adapted(nn.Module):
    """A frozen embedding, and two layers in a checkpoint behind it."""

    def __init__(self, *, reentrant: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 3).requires_grad_(False)
        self.block = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.head = nn.Linear(3, 2)
        self.reentrant, self.detached = reentrant, False

    def forward(self, tokens: Tensor) -> Tensor:
        x = checkpoint(self.block, self.embed(tokens), use_reentrant=self.reentrant)
        return self.head(x.detach() if self.detached else x)


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.arange(6)).square().sum().backward()
    optimizer.step()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_runs_in_it_is_told_with_both_ways_to_mend_it() -> None:
    model = Adapted()
    (cause,) = broken(model, lambda: train(model)).causes
    assert cause.name == "no-gradient"
    assert cause.layers == ("block.0.weight", "block.0.bias", "block.1.weight", "block.1.bias")
    assert "reentrant checkpoint, none of whose inputs requires a gradient" in cause.why
    assert "use_reentrant=False" in cause.fix
    assert "enable_input_require_grads()" in cause.fix


def test_both_ways_to_mend_it_hold() -> None:
    with watching(trains(model := Adapted(reentrant=False)), layers=6):
        train(model)
    model = Adapted()
    model.embed.register_forward_hook(lambda *call: call[-1].requires_grad_())
    with watching(trains(model), layers=6):
        train(model)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_parameter_without_gradient_for_another_reason_has_no_such_advice(
    reentrant: bool,
) -> None:
    model = Adapted(reentrant=reentrant)
    model.embed.register_forward_hook(lambda *call: call[-1].requires_grad_())
    model.detached = True
    (cause,) = broken(model, lambda: train(model), "block").causes
    assert cause.name == "no-gradient"
    assert "use_reentrant" not in cause.fix
