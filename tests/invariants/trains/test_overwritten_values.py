"""What is written over after the last step did not train; what is only changed a little did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pytest_bninvariants import trains
from tests.invariants.trains.steps import batch, broken, causes, step
from tests.watching import watching


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16))


def initialise(model: nn.Module) -> None:
    model[2].reset_parameters()


def zero(model: nn.Module) -> None:
    nn.init.zeros_(model[2].weight)


def copy(model: nn.Module) -> None:
    model[2].weight.copy_(nn.Linear(16, 16).weight)


@pytest.mark.parametrize("write", [initialise, zero, copy])
@pytest.mark.parametrize("steps", [1, 2])
def test_what_is_written_over_after_the_last_step_did_not_train(
    write: Callable[[nn.Module], object], steps: int
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def guarded() -> None:
        for _ in range(steps):
            step(model, optimizer)
        with torch.no_grad():
            write(model)

    verdict = broken(model, guarded)
    assert causes(verdict) == {"in-place": ("2.weight",)}
    assert verdict.changes[0].text == "was written over after SGD stepped"
    assert "has nothing of the values that SGD led to" in verdict.causes[0].why


def initialise_first(model: nn.Module) -> None:
    model[2].reset_parameters()
    step(model, torch.optim.SGD(model.parameters(), lr=0.1))


def clip(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.clamp_(-0.01, 0.01)


def prune(model: nn.Module) -> None:
    model[2].weight.mul_(torch.rand(16, 16) < 0.05)


def normalise(model: nn.Module) -> None:
    model[2].weight.div_(model[2].weight.norm(dim=1, keepdim=True))


def orthogonalise(model: nn.Module) -> None:
    left, _, right = torch.linalg.svd(model[2].weight)
    model[2].weight.copy_(left @ right)


def round_to_signs(model: nn.Module) -> None:
    model[2].weight.sign_()


def average(model: nn.Module) -> None:
    for parameter, other in zip(model.parameters(), network().parameters(), strict=True):
        parameter.lerp_(other, 0.5)


def swap(model: nn.Module) -> None:
    kept = [parameter.clone() for parameter in model.parameters()]
    initialise(model)
    for parameter, value in zip(model.parameters(), kept, strict=True):
        parameter.copy_(value)


@pytest.mark.parametrize(
    "write",
    [initialise_first, clip, prune, normalise, orthogonalise, round_to_signs, average, swap],
)
def test_what_is_projected_or_put_back_after_the_step_did_train(
    write: Callable[[nn.Module], object],
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(trains(model), layers=6):
        step(model, optimizer)
        with torch.set_grad_enabled(write is initialise_first):
            write(model)


def test_a_spectral_norm_is_no_overwriting() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 16)), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with watching(trains(model), layers=4):
        for _ in range(3):
            step(model, optimizer)
        model(batch())
