"""What an optimizer holds, and with what it steps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

from pytest_bninvariants.instrumentation.optimizers import (
    OuterSteps,
    gradient_of,
    gradients_of,
    has_gradients,
    have_moments,
    held_by,
    skips_parameters_without_gradient,
)


def parameters(*gradients: list[float] | None) -> list[Tensor]:
    made: list[Tensor] = []
    for gradient in gradients:
        made.append(nn.Parameter(torch.ones(2)))
        made[-1].grad = None if gradient is None else torch.tensor(gradient)
    return made


def test_gradients_are_told_by_all_their_values() -> None:
    every = parameters(None, [0.0, 0.0], [0.0, 1.0], [1.0, 1.0])
    assert gradients_of(every) == ["none", "zero", "nonzero", "nonzero"]
    assert [gradient_of(each) for each in every] == gradients_of(every)


def test_an_optimizer_holds_the_parameters_of_all_its_groups() -> None:
    first, second, third = parameters(None, None, [0.0, 0.0])
    optimizer = SGD([{"params": [first]}, {"params": [second]}])
    assert held_by(optimizer) == {id(first), id(second)}
    assert not has_gradients(optimizer)
    optimizer.add_param_group({"params": [third]})
    assert has_gradients(optimizer)


def moved(kind: Any, **options: Any) -> tuple[Optimizer, list[Tensor]]:
    """Return an optimizer that has stepped, its parameters with and without gradients, and one."""
    held = parameters([1.0, 1.0], [0.0, 0.0], None)
    optimizer = kind(held, lr=0.1, **options)
    optimizer.step(*([lambda: 1.0] if kind is LBFGS else []))
    return optimizer, [*held, *parameters(None)]


@pytest.mark.parametrize(
    ("kind", "options", "having"),
    [
        (SGD, {}, [False, False, False, False]),
        (SGD, {"momentum": 0.9}, [True, False, False, False]),
        (Adam, {}, [True, False, False, False]),
        (Adam, {"betas": (0.0, 0.9)}, [True, False, False, False]),
    ],
)
def test_moments_are_state_that_is_not_zero(
    kind: Any, options: dict[str, Any], having: list[bool]
) -> None:
    optimizer, tensors = moved(kind, **options)
    assert have_moments(optimizer, tensors) == having


def test_lbfgs_has_one_state_for_all_its_parameters() -> None:
    optimizer, tensors = moved(LBFGS)
    assert have_moments(optimizer, tensors) == [True, True, True, True]
    assert have_moments(LBFGS(parameters(None)), tensors) == [False] * 4


def test_moments_of_an_optimizer_that_another_wraps_count() -> None:
    inner, tensors = moved(Adam)
    outer = SGD(tensors[:1])
    assert have_moments(outer, tensors) == [False] * 4
    outer.inner = inner  # type: ignore[attr-defined]
    assert have_moments(outer, tensors) == [True, False, False, False]


def test_torchs_own_optimizers_but_lbfgs_skip_parameters_without_a_gradient() -> None:
    class Own(SGD):
        pass

    held = parameters(None)
    kinds = (SGD(held), Adam(held), LBFGS(held), Own(held))
    told = [skips_parameters_without_gradient(each) for each in kinds]
    assert told == [True, True, False, False]


def test_a_step_inside_another_is_part_of_it_and_one_that_raises_is_none() -> None:
    steps = OuterSteps()

    def step(*inner: Callable[[], bool], fails: bool = False) -> bool:
        frame = sys._getframe()
        begins = steps.begins(frame)
        assert [each() for each in inner] == [False] * len(inner)
        if begins and not fails:
            steps.ended(frame)
        return begins

    assert step(step, lambda: step(step))
    assert steps.count == 1
    assert step(fails=True)
    assert steps.count == 1
    assert not steps.begins(None)
