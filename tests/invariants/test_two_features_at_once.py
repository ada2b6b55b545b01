"""Guards judge right where two things come together that each have tests of their own."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import timm
import torch
from torch import Tensor, nn

from pytest_bninvariants import (
    InvariantBroken,
    bn_updates,
    frozen_bn,
    in_sync,
    run_config,
    same_output,
)
from pytest_bninvariants.invariants.guard import Guard
from tests.engine import Net


def holds(guard: Guard) -> bool:
    return guard.verdict is not None and guard.verdict.holds


def test_a_traced_copy_of_a_frozen_model_has_run(batch: Tensor) -> None:
    model = Net().eval()
    traced = torch.jit.trace(model, batch)
    with frozen_bn(model) as guard:
        traced(batch)
    assert holds(guard)


def test_a_convolution_that_standardises_its_weight_by_batch_norm_updates_nothing() -> None:
    images = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(timm.layers.StdConv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with frozen_bn(model) as frozen:
        model(images)
    with bn_updates(model.train()) as updated:
        model(images)
    assert holds(frozen)
    assert holds(updated)


def test_a_layer_without_a_counter_that_never_ran_is_not_blamed_for_compiled_code(
    batch: Tensor,
) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).eval()
    model[0].num_batches_tracked = None
    compiled = torch.compile(torch.sin, backend="eager")
    with frozen_bn(model) as guard:
        compiled(torch.ones(2))
        model[1](batch)
    assert holds(guard)


@pytest.mark.parametrize(("weight", "broken"), [(0.1, False), (0.5, True)])
def test_an_average_is_judged_above_the_memory_budget(weight: float, broken: bool) -> None:
    model, ema = nn.Linear(80, 80), nn.Linear(80, 80)
    ema.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        model(torch.randn(4, 80)).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(ema.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, weight)

    with (
        run_config.override(snapshot_budget=0),
        pytest.raises(InvariantBroken) if broken else nullcontext(),
        in_sync(model, ema, decay=0.9) as guard,
    ):
        step()
    assert guard.verdict is not None
    assert guard.verdict.holds != broken


@pytest.mark.parametrize(
    ("atol", "move", "broken"),
    [(0.0, 0.0, False), (0.0, 1.0, True), (0.1, 0.01, False), (0.1, 1.0, True)],
)
def test_outputs_are_judged_above_the_memory_budget(atol: float, move: float, broken: bool) -> None:
    model, x = nn.Linear(40, 4000), torch.randn(40, 40)

    def step() -> None:
        model(x)
        model.weight.data[0, 0] += move

    with (
        run_config.override(snapshot_budget=0),
        pytest.raises(InvariantBroken) if broken else nullcontext(),
        same_output(model, x, atol=atol) as guard,
    ):
        step()
    assert guard.verdict is not None
    assert guard.verdict.holds != broken
