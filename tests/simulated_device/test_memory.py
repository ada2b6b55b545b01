"""A device that is nearly full changes no verdict, and a budget bounds what a guard copies."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pytest_bninvariants import FrozenStateChanged, InvariantBroken, frozen
from pytest_bninvariants.run_config import override
from tests.simulated_device.device import peak, spare
from tests.simulated_device.models import DEVICE, MIB, batch, large_model, sgd


def zero_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def test_what_holds_is_found_to_hold_with_a_megabyte_left() -> None:
    model = large_model()
    guard = frozen(model)
    with guard:
        model[2](torch.zeros(2, 20, device=DEVICE))
        full = spare(MIB)
        full.__enter__()
    full.__exit__(None, None, None)
    assert guard.verdict is not None
    assert guard.verdict.holds


def test_a_change_is_told_with_a_megabyte_left() -> None:
    model = large_model()
    full = spare(MIB)

    def step() -> None:
        model[2](torch.zeros(2, 20, device=DEVICE))
        model[1].weight.data.mul_(0.5)
        full.__enter__()

    with pytest.raises(FrozenStateChanged) as broken, frozen(model):
        step()
    full.__exit__(None, None, None)
    assert "6000000 of 6000000 values" in str(broken.value)


def test_a_step_of_an_optimizer_is_told_where_its_copies_have_no_room() -> None:
    model, x = large_model(), torch.randn(2, 5).to(DEVICE)
    zero_gradients(model)
    optimizer = sgd(model)

    def step() -> None:
        model(x).sum().backward()
        with spare(40 * MIB):
            optimizer.step()

    with pytest.raises(FrozenStateChanged) as broken, frozen(model):
        step()
    assert broken.value.verdict.causes[0].name == "gradient-step"


def test_a_snapshot_that_does_not_fit_keeps_fingerprints() -> None:
    model = large_model()
    guard = frozen(model)
    with spare(8 * MIB):
        guard.__enter__()
        model[2](torch.zeros(2, 20, device=DEVICE))
        model[1].weight.data.view(-1)[-1] += 1
        with pytest.raises(FrozenStateChanged) as broken:
            guard.__exit__(None, None, None)
    assert "1 of 23 fingerprints" in str(broken.value)


def test_a_budget_of_nothing_bounds_every_copy() -> None:
    layers = [nn.Linear(400, 400) for _ in range(10)]
    model = nn.Sequential(*layers, nn.BatchNorm1d(400)).to(DEVICE).eval()
    x, optimizer = batch(400), sgd(model)
    size = sum(each.nbytes for each in model.state_dict().values())
    zero_gradients(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(x).sum().backward()
        optimizer.step()

    def guarded() -> None:
        with pytest.raises(InvariantBroken), frozen(model):
            step()

    def most_of(run: Callable[[], None]) -> int:
        gc.collect()
        with peak() as most:
            run()
        return most[0]

    alone = most_of(step)
    with override(snapshot_budget=0):
        assert most_of(guarded) - alone < size / 2
    assert most_of(guarded) - alone > size / 2
