"""Work in flight on other streams neither hides a change nor makes one up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, frozen
from tests.simulated_device.device import held
from tests.simulated_device.models import DEVICE


@pytest.fixture
def model() -> nn.Sequential:
    """A model whose weight is a large tensor, and whose statistics are small ones."""
    return nn.Sequential(nn.Linear(600, 700), nn.BatchNorm1d(700)).to(DEVICE).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 600).to(DEVICE)


@pytest.fixture
def side() -> torch.Stream:
    return torch.Stream(f"{DEVICE}:0")


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean"])
def test_a_write_that_is_in_flight_at_the_end_is_told(
    model: nn.Module, x: Tensor, side: torch.Stream, name: str
) -> None:
    def step() -> None:
        model(x)
        with side, torch.no_grad():
            model.get_parameter(name).add_(1) if "weight" in name else model.get_buffer(name).add_(
                1
            )

    with held(side), pytest.raises(FrozenStateChanged), frozen(model):
        step()


def test_a_step_on_a_free_stream_does_not_race_with_the_snapshot(
    model: nn.Sequential, x: Tensor, side: torch.Stream
) -> None:
    main = torch.accelerator.current_stream(0)
    side.wait_stream(main)

    def step() -> None:
        with side:
            model[0].weight.data.add_(1)
        main.wait_stream(side)
        model(x)

    with held(main), pytest.raises(FrozenStateChanged), frozen(model):
        step()


def test_a_write_from_before_the_guard_is_none_of_the_steps(
    model: nn.Sequential, x: Tensor, side: torch.Stream
) -> None:
    def step() -> None:
        with side:
            model(x)
        side.synchronize()

    with held(side):
        with side:
            model[0].weight.data.add_(1)
        with frozen(model) as guard:
            step()
    assert guard.verdict is not None
    assert guard.verdict.holds


def test_a_write_that_is_in_flight_on_the_second_device_is_told(
    model: nn.Module, x: Tensor
) -> None:
    second = nn.BatchNorm1d(700).to(f"{DEVICE}:1").eval()
    both, side = nn.ModuleList([model, second]), torch.Stream(f"{DEVICE}:1")

    def step() -> None:
        second(model(x).to(f"{DEVICE}:1"))
        with side, torch.no_grad():
            second.running_var.add_(1)

    with held(side), pytest.raises(FrozenStateChanged, match=r"1\.running_var"), frozen(both):
        step()
