"""Training is judged on a device without float64, and on one that is nearly full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from torch import nn

from pytest_bninvariants import InvariantBroken, bn_updates, run_config, trains
from tests.simulated_device.device import counted, peak, spare, without_float64
from tests.simulated_device.models import DEVICE, MIB, batch, sgd, small_model, train_step


@pytest.fixture
def no_float64() -> Iterator[None]:
    with without_float64():
        yield


@pytest.mark.usefixtures("no_float64")
def test_bn_updates_and_trains_hold() -> None:
    model = small_model()
    with bn_updates(model), trains(model):
        train_step(model, sgd(model), batch())


@pytest.mark.usefixtures("no_float64")
def test_a_batch_is_copied_to_the_host_once() -> None:
    model = nn.Sequential(nn.Linear(5, 64), nn.BatchNorm1d(64)).to(DEVICE)
    x = torch.randn(256, 5).to(DEVICE)
    with counted() as happened, bn_updates(model):
        model(x)
    assert happened.copied_to_host < 256 * 64 * 4 * 1.1


class HalfAsMuch(nn.BatchNorm1d):
    """Its running mean goes half as far as it should."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        old = self.running_mean.clone()
        y = super().forward(x)
        self.running_mean.copy_((self.running_mean + old) / 2)
        return y


@pytest.mark.usefixtures("no_float64")
def test_wrong_updates_are_told() -> None:
    model = nn.Sequential(nn.Linear(5, 6), HalfAsMuch(6)).to(DEVICE)
    with pytest.raises(InvariantBroken, match="running_mean"), bn_updates(model):
        model(batch() + 3)


@pytest.mark.usefixtures("no_float64")
def test_statistics_that_no_forward_can_use_are_told() -> None:
    model = small_model()
    x = batch()
    x[0] = float("nan")
    with pytest.raises(InvariantBroken, match="not finite"), bn_updates(model):
        model(x)


@pytest.mark.usefixtures("no_float64")
def test_what_did_not_train_is_told_with_its_cause() -> None:
    model = small_model()
    frozen = sgd(model[0])
    with pytest.raises(InvariantBroken, match="not-in-optimizer"), trains(model):
        train_step(model, frozen, batch())
    with pytest.raises(InvariantBroken, match="not-finite"), trains(model):
        train_step(model, sgd(model, lr=float("nan")), batch())


def wide_model() -> nn.Sequential:
    """Return a model of ten equal layers and one BN layer, for inputs (N, 400)."""
    layers = (nn.Linear(400, 400) for _ in range(10))
    return nn.Sequential(*layers, nn.BatchNorm1d(400)).to(DEVICE)


def peak_of(run: Callable[[], object]) -> int:
    with peak() as most, suppress(InvariantBroken):
        run()
    return most[0]


def test_trains_keeps_to_the_budget_around_steps_and_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(run_config.current, snapshot_budget=0)
    monkeypatch.setattr(run_config, "current", config)
    model, x = wide_model(), torch.randn(4, 400).to(DEVICE)
    optimizer = sgd(model, momentum=0.9)
    size = sum(each.nbytes for each in model.state_dict().values())
    state = {name: value.cpu() for name, value in model.state_dict().items()}

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(x).sum().backward()
        optimizer.step()
        model.load_state_dict(state)

    def guarded() -> None:
        with trains(model):
            step()

    step()
    assert peak_of(guarded) - peak_of(step) < 0.5 * size


def test_a_batch_is_summed_up_where_the_device_has_no_memory_for_that() -> None:
    layer = nn.BatchNorm1d(64).to(DEVICE)
    x = torch.randn(2**14, 64).to(DEVICE)
    with bn_updates(layer), spare(x.nbytes + MIB):
        layer(x)


def test_a_verdict_is_told_without_memory_to_find_it() -> None:
    model, x = small_model(), batch()
    guard = trains(model)
    guard.__enter__()
    train_step(model, sgd(model[:2]), x)
    with spare(0), pytest.raises(InvariantBroken, match="not-in-optimizer"):
        guard.__exit__(None, None, None)
