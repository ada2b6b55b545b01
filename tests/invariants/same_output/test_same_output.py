"""same_output: in eval the same inputs give the same outputs, before and after a step."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError, InvariantBroken, run_config, same_output
from pytest_bninvariants.run_config import RunConfig, Trace
from tests.invariants.same_output.steps import message, train_forward


def test_a_step_in_eval_keeps_the_output(net: Any, batch: Tensor) -> None:
    with same_output(net, batch) as guard:
        net(batch)
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 1)


def test_a_forward_in_training_mode_changes_it_and_is_named_with_its_line(
    net: Any, batch: Tensor
) -> None:
    with pytest.raises(InvariantBroken) as caught, same_output(net, batch):
        train_forward(net, batch + 1)
    told = message(caught)
    assert told.startswith("1 of 1 output changed: output (mode-flip)")
    assert "put in training mode by Net.train(True) at" in told
    assert "its state differs in 6 places: backbone.bn.running_mean" in told


def test_an_optimizers_step_changes_it_and_is_named(net: Any, batch: Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(batch).sum().backward()
    with pytest.raises(InvariantBroken, match=r"\(gradient-step\)"), same_output(net, batch):
        optimizer.step()


def test_only_the_submodule_that_is_named_counts_even_if_another_object_holds_its_name(
    net: Any, batch: Tensor
) -> None:
    with same_output(net, batch, modules="backbone") as guard:
        net.neck.train()
        net(batch)
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 1)
    with (
        pytest.raises(InvariantBroken, match="output changed: backbone"),
        same_output(net, batch, modules="backbone"),
    ):
        net.backbone = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))


def test_the_inputs_are_kept_as_they_were(net: Any, batch: Tensor) -> None:
    with same_output(net, batch) as guard:
        net(batch)
        batch.zero_()
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 1)


class Returns(nn.Module):
    """Return whatever a test wants, made from a parameter."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.make = make

    def forward(self, x: Tensor) -> object:
        return self.make(x * self.weight)


def swap(module: Returns, make: Callable[[Tensor], object]) -> None:
    module.make = make
    module(torch.ones(2, 3))


def failure_text(module: Returns, make: Callable[[Tensor], object]) -> str:
    with pytest.raises(InvariantBroken) as caught, same_output(module, torch.ones(2, 3)):
        swap(module, make)
    return message(caught)


def test_each_output_has_its_path_and_how_far_it_is_off() -> None:
    module = Returns(lambda y: {"logits": y, "deep": [y, (y.sum(), "text")]})
    told = failure_text(module, lambda y: {"logits": y + 0.5, "deep": [y, (y.sum(), "other")]})
    assert told.startswith("2 of 4 outputs changed: output['logits'], output['deep'][1][1]")
    assert "6 of 6 values, max |d| 5.0e-01 at [0, 0]: 1.0 -> 1.5" in told
    assert "'text' (str) -> 'other' (str)" in told
    assert "none of its parameters, buffers and eps values changed" in told


@pytest.mark.parametrize(
    ("make", "after", "text"),
    [
        (lambda y: [y], lambda y: [y, y], "new: output, float32 (2, 3)"),
        (lambda y: [y, y], lambda y: [y], "output[1] gone"),
        (lambda y: y, lambda y: y.double(), "float32 -> float64"),
        (lambda y: y, lambda y: y[:1], "shape (2, 3) -> (1, 3)"),
        (lambda y: {"a": y}, lambda y: {"a": None}, "float32 (2, 3) -> None (NoneType)"),
        (lambda y: {"a": y, "n": 1}, lambda y: {"a": y}, "output['n'] 1 (int) -> gone"),
        (lambda y: {"a": y}, lambda y: {"a": y, "n": 1}, "1 (int)"),
        (lambda y: y * 0, lambda y: y * -0.0, "0.0 -> -0.0"),
    ],
)
def test_dtypes_shapes_and_missing_outputs_are_told(
    make: Callable[[Tensor], object], after: Callable[[Tensor], object], text: str
) -> None:
    assert text in failure_text(Returns(make), after)


def test_nan_equals_the_same_nan() -> None:
    module = Returns(lambda y: (y / 0 * 0, float("nan")))
    with same_output(module, torch.ones(2, 3)) as guard:
        module(torch.ones(2, 3))
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 2)


def test_a_tolerance_allows_what_it_says_and_no_more(net: Any, batch: Tensor) -> None:
    def step(move: float) -> None:
        with torch.no_grad():
            net.head.bias += move

    with same_output(net, batch, atol=1e-3) as guard:
        step(5e-4)
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 1)
    with (
        pytest.raises(InvariantBroken, match=r"2.0e-03 at .*; 4"),
        same_output(net, batch, atol=1e-3),
    ):
        step(2e-3)


def test_modes_gradients_buffers_and_generators_are_left_as_they_were(
    net: Any, batch: Tensor
) -> None:
    class Counting(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            self.num_batches_tracked += 1
            return super().forward(x)

    net.neck = Counting(3)
    net.backbone.train()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    modes = [module.training for module in net.modules()]
    state = copy.deepcopy(net.state_dict())
    generators = torch.get_rng_state(), random.getstate(), str(numpy.random.get_state())
    guard = same_output(net, batch)
    guard.start()
    guard.stop()
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), str(numpy.random.get_state())) == generators[1:]


def test_memory_that_moved_is_a_step_though_nothing_else_was_seen() -> None:
    model, images = nn.Conv2d(2, 3, 3), torch.randn(2, 2, 4, 4)

    def step(layout: torch.memory_format) -> None:
        with same_output(model, images, atol=1e-4) as guard:
            model.to(memory_format=layout)
        assert (guard.verdict.holds, guard.verdict.layers) == (True, 1)

    step(torch.channels_last)
    with pytest.raises(GateError, match="nothing ran inside same_output"):
        step(torch.channels_last)


def test_noise_below_rtol_is_none_and_noise_above_it_is() -> None:
    class Noisy(nn.Module):
        """A kernel that adds in another order each time."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.weight * (1 + 1e-6 * self.calls)

    x = torch.ones(2, 3)
    model = Noisy()
    with same_output(model, x, rtol=1e-3) as guard:
        model(x)
    assert guard.verdict is not None
    assert guard.verdict.holds
    with pytest.raises(InvariantBroken), same_output(model, x, rtol=1e-3):
        model.weight.data.mul_(1.1)


def test_a_hazard_is_told_with_a_change_and_only_then(net: Any, batch: Tensor) -> None:
    with same_output(net, batch) as guard:
        net.neck.momentum = 0.5
        net(batch)
    assert guard.verdict.holds
    assert guard.verdict.hazards == ()

    def step() -> None:
        net.neck.momentum = 0.1
        net.head.bias.data += 1

    with pytest.raises(InvariantBroken) as caught, same_output(net, batch):
        step()
    assert [hazard.name for hazard in caught.value.verdict.hazards] == ["neck"]


def test_a_module_without_tensors_is_judged_by_its_output(batch: Tensor) -> None:
    module = nn.LeakyReLU(0.1)
    with same_output(module, batch) as guard:
        pass
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 1)
    with pytest.raises(InvariantBroken) as caught, same_output(module, batch):
        module.negative_slope = 0.5
    assert "its forward reads something else that did" in message(caught)


def test_a_trace_tells_who_wrote(net: Any, batch: Tensor) -> None:
    def step() -> None:
        net.head.bias.data += 1

    with (
        run_config.activate(RunConfig(trace=Trace())),
        pytest.raises(InvariantBroken) as caught,
        same_output(net, batch),
    ):
        step()
    assert [write.name for write in caught.value.verdict.writes] == ["head.bias"]
