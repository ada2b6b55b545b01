"""Loads and writes in place are told apart by what was seen of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pytest_bninvariants
from pytest_bninvariants import frozen
from tests.state_change.rules.branches import (
    Branches,
    batch,
    the_cause,
    train,
    verdict_of,
)


def test_a_load(model: Branches) -> None:
    other = Branches().state_dict()
    cause = the_cause(verdict_of(model, lambda: model.load_state_dict(other)))
    assert cause.name == "loaded"
    assert cause.place.call == "Branches.load_state_dict()"
    assert cause.place.file == __file__


def test_a_load_into_a_part(model: Branches) -> None:
    other = nn.Linear(3, 3).state_dict()
    cause = the_cause(verdict_of(model, lambda: model.frozen.load_state_dict(other)))
    assert (cause.name, cause.place.call) == ("loaded", "Linear.load_state_dict()")


def test_a_load_that_complains_when_it_has_loaded(model: Branches) -> None:
    def step() -> None:
        with pytest.raises(RuntimeError, match="Unexpected key"):
            model.load_state_dict(Branches().state_dict() | {"more": torch.ones(1)})

    assert the_cause(verdict_of(model, step)).name == "loaded"


def test_a_load_that_assigns(model: Branches) -> None:
    other = Branches().state_dict()
    cause = the_cause(verdict_of(model, lambda: model.load_state_dict(other, assign=True)))
    assert cause.name == "loaded"


def test_a_load_of_equal_values_is_not_blamed_for_what_comes_after(model: Branches) -> None:
    def step() -> None:
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
        model.frozen.weight.data.add_(1)

    assert the_cause(verdict_of(model, step)).name == "in-place"


def test_the_first_load_that_changed_a_value_is_told_and_no_later_one(model: Branches) -> None:
    def first() -> None:
        model.load_state_dict(Branches().state_dict())

    def second(state: dict[str, Tensor]) -> None:
        model.load_state_dict(state)

    def same() -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.state_dict().items()}

    for later in (same, lambda: Branches().state_dict()):
        cause = the_cause(verdict_of(model, lambda: (first(), second(later()))))  # noqa: B023
        assert (cause.name, cause.place.function) == ("loaded", "first")


def test_a_write_in_place_says_what_was_not_seen(model: Branches) -> None:
    def step() -> None:
        model(batch())
        model.frozen.weight.data.add_(1)

    cause = the_cause(verdict_of(model, step))
    assert cause.name == "in-place"
    assert "frozen.weight was written to by something other than an optimizer step" in cause.why
    assert "--bn-trace" in cause.fix
    assert "ran" not in cause.why


def test_a_buffer_may_be_written_by_the_forward_of_its_own_module(model: Branches) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, batch: Tensor) -> Tensor:
            self.calls += 1
            return batch

    model.frozen = nn.Sequential(Counting(), model.frozen)  # type: ignore[assignment]
    cause = the_cause(verdict_of(model, lambda: model(batch())))
    assert (cause.name, cause.tensors) == ("in-place", ("frozen.0.calls",))
    assert "the forward of frozen.0 ran, and may have done so" in cause.why


def test_a_buffer_of_a_plain_bn_layer_in_eval_is_not_written_by_its_forward(
    model: Branches,
) -> None:
    model.frozen = nn.Sequential(nn.BatchNorm1d(3).eval(), model.frozen)  # type: ignore[assignment]

    def step() -> None:
        model(batch())
        model.frozen[0].running_mean.add_(1)  # type: ignore[index]

    cause = the_cause(verdict_of(model, step))
    assert (cause.name, cause.tensors) == ("in-place", ("frozen.0.running_mean",))
    assert "may do it" not in cause.why


def test_an_average_is_a_write_in_place(model: Branches) -> None:
    average = torch.optim.swa_utils.AveragedModel(model)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    average.update_parameters(model)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    verdict = verdict_of(average, lambda: average.update_parameters(model), "module.frozen")
    assert the_cause(verdict).name == "in-place"


def test_several_causes_of_one_layer_are_told_apart_by_tensor() -> None:
    layer = nn.BatchNorm1d(3)
    model = nn.Sequential(layer)
    optimizer = torch.optim.SGD([layer.weight], lr=0.1)

    def step() -> None:
        model(batch()).square().sum().backward()
        optimizer.step()
        layer.bias.data.add_(1)

    verdict = verdict_of(model, step, "0")
    assert {cause.name: cause.tensors for cause in verdict.causes} == {
        "gradient-step": ("0.weight",),
        "training-mode": ("0.running_mean", "0.running_var", "0.num_batches_tracked"),
        "in-place": ("0.bias",),
    }


@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
def test_a_long_loop_keeps_no_more_than_a_short_one(model: Branches) -> None:
    ours = tracemalloc.Filter(True, f"{Path(pytest_bninvariants.__file__).parent}/*")
    model.frozen.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with frozen(model, "frozen") as guard:
        tracemalloc.start()
        train(model, optimizer)
        sizes = []
        for _ in range(2):
            for _ in range(1_000):
                train(model, optimizer)
            kept = tracemalloc.take_snapshot().filter_traces([ours])
            sizes.append(sum(trace.size for trace in kept.traces))
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 1_000
    assert (guard.verdict.holds, guard.verdict.tensors) == (True, 2)
