"""A device that is nearly full changes no verdict, and a budget bounds what a guard copies."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pytest_bninvariants import (
    FrozenStateChanged,
    Guard,
    InvariantBroken,
    frozen,
    in_sync,
    same_output,
)
from pytest_bninvariants.run_config import override
from pytest_bninvariants.snapshot.fingerprints import fingerprints
from tests.simulated_device.device import peak, spare
from tests.simulated_device.models import DEVICE, MIB, batch, large_model, sgd


@pytest.fixture(autouse=True, scope="module")
def first_fingerprints() -> None:
    """Make what the first fingerprints leave on a device for all later ones."""
    fingerprints(torch.zeros(8, dtype=torch.uint8, device=DEVICE), "torch operators")


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


SIDE = 1200


def wide_model() -> nn.Linear:
    return nn.Linear(SIDE, SIDE).to(DEVICE)


def moving(average: nn.Linear, model: nn.Linear, by: float) -> Callable[[], None]:
    """Return a step that trains a model by hand, and averages it."""

    def step() -> None:
        with torch.no_grad():
            for target, source in zip(average.parameters(), model.parameters(), strict=True):
                source.add_(1)
                target.mul_(by).add_(source, alpha=1 - by)

    return step


def average_guard(average: nn.Linear, model: nn.Linear) -> Guard:
    return in_sync(model, average, decay=0.9)


@pytest.mark.parametrize("memory", ["full", "over budget"])
@pytest.mark.parametrize("by", [0.9, 0.8])
def test_an_average_is_judged_without_room_for_copies(memory: str, by: float) -> None:
    model = wide_model()
    average = copy.deepcopy(model)
    with override(snapshot_budget=0 if memory == "over budget" else None):
        guard = average_guard(average, model)
        with spare(4 * MIB if memory == "full" else 4 << 30):
            guard.__enter__()
        moving(average, model, by)()
        if by == 0.9:
            guard.__exit__(None, None, None)
        else:
            with pytest.raises(InvariantBroken, match="not averaged with decay"):
                guard.__exit__(None, None, None)


def test_copies_for_an_average_keep_to_the_budget() -> None:
    model = wide_model()
    average = copy.deepcopy(model)
    with override(snapshot_budget=0), peak() as most:
        guard = average_guard(average, model)
        guard.__enter__()
    guard.stop()
    assert most[0] < MIB


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_outputs_are_compared_above_the_budget(tolerance: float) -> None:
    model, x = wide_model().eval(), torch.randn(300, SIDE).to(DEVICE)

    def write(value: float) -> Callable[[], None]:
        return lambda: model.weight.data.view(-1)[:1].add_(value)

    with override(snapshot_budget=0):
        with same_output(model, x, atol=tolerance):
            write(1e-6 if tolerance else 0.0)()
            model(x)
        with pytest.raises(InvariantBroken) as broken, same_output(model, x, atol=tolerance):
            write(1.0)()
    (change,) = broken.value.verdict.changes
    assert ("fingerprints" in change.text) == (tolerance == 0)


def test_a_module_is_called_and_put_back_without_room_for_a_copy_of_it() -> None:
    model, x = wide_model().eval(), torch.randn(3, SIDE).to(DEVICE)
    before = model.weight.detach().cpu()
    guard = same_output(model, x)
    with spare(3 * MIB):
        guard.__enter__()
        model(x)
        guard.__exit__(None, None, None)
    assert guard.verdict is not None
    assert guard.verdict.holds
    assert torch.equal(model.weight.detach().cpu(), before)


class CountsItsCalls(nn.Linear):
    """It writes to its weight in each forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data.add_(1)
        return x


def test_what_a_call_writes_is_put_back_from_the_host() -> None:
    model, x = CountsItsCalls(SIDE, SIDE).to(DEVICE), torch.ones(1, device=DEVICE)
    before, place = model.weight.detach().cpu(), model.weight.data_ptr()
    with override(snapshot_budget=0), peak() as most:
        guard = same_output(model, x)
        guard.__enter__()
    guard.stop()
    assert most[0] < 2 * MIB
    assert torch.equal(model.weight.detach().cpu(), before)
    assert (model.weight.data_ptr(), model.weight.device.type) == (place, DEVICE)


@pytest.mark.parametrize("function", ["memory_reserved", "mem_get_info"])
def test_an_allocator_without_statistics_is_no_error(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(device: object = None) -> int:
        raise RuntimeError("the pluggable allocator does not yet support getDeviceStats")

    monkeypatch.setattr(torch.simdev, function, refuse, raising=False)
    model = nn.Linear(5000, 4000).to(DEVICE)  # 80 MB, for which it asks how many bytes are free
    x = torch.ones(1, 5000, device=DEVICE)
    with frozen(model):
        model(x)

    def step() -> None:
        model(x)
        model.weight.data[3, 4] += 1

    with pytest.raises(FrozenStateChanged, match="1 of 20000000 values"), frozen(model):
        step()
