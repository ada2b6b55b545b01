"""A guard tells who switched on requires_grad, and leaves the class of parameters as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from pytest_bninvariants import FrozenStateChanged, Verdict, frozen

BATCH = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    net[0].requires_grad_(False)
    return net


def verdict_of(net: nn.Module, unfreeze: Callable[[Any], object]) -> Verdict:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step() -> None:
        unfreeze(net)
        net(BATCH).square().mean().backward()
        optimizer.step()

    with pytest.raises(FrozenStateChanged) as caught, frozen(net, "0"):
        step()
    return caught.value.verdict


def by_method(net: Any) -> None:
    for parameter in net.parameters():
        parameter.requires_grad_()


def by_attribute(net: Any) -> None:
    for parameter in net.parameters():
        parameter.requires_grad = True


def by_module(net: Any) -> None:
    net.requires_grad_(True)


@pytest.mark.parametrize(
    ("unfreeze", "call", "line"),
    [
        (by_method, "Parameter.requires_grad = True", 2),
        (by_attribute, "Parameter.requires_grad = True", 2),
        (by_module, "Sequential.requires_grad_(True)", 1),
    ],
)
def test_who_switched_it_on_is_told(
    net: nn.Module, unfreeze: Callable[[Any], object], call: str, line: int
) -> None:
    verdict = verdict_of(net, unfreeze)
    (cause,) = verdict.causes
    assert cause.name == "gradient-step"
    assert "requires_grad was switched on during the step" in cause.why
    assert cause.did == "switched on by"
    assert cause.place is not None
    assert (cause.place.call, cause.place.function) == (call, unfreeze.__name__)
    assert cause.place.line == unfreeze.__code__.co_firstlineno + line
    assert {hazard.name for hazard in verdict.hazards} >= {"0.weight", "0.bias"}


def test_what_was_trainable_all_along_was_not_switched_on(net: nn.Module) -> None:
    net.requires_grad_(True)
    (cause,) = verdict_of(net, by_method).causes
    assert "requires_grad is True" in cause.why
    assert cause.did == "stepped by"


def test_parameters_behave_as_without_a_guard(net: nn.Module) -> None:
    weight = net[0].weight
    with frozen(net, "0"):
        net(BATCH)
        assert weight.requires_grad is False
        assert weight.requires_grad_(True) is weight
        assert weight.requires_grad_(requires_grad=False).requires_grad is False
        with pytest.raises(RuntimeError, match="floating point"):
            nn.Parameter(torch.tensor(1), requires_grad=False).requires_grad = True
        assert Tensor.requires_grad.__get__(weight) is False
    assert not {"requires_grad", "requires_grad_"} & vars(nn.Parameter).keys()


def test_a_compiled_model_is_not_compiled_again(net: nn.Module) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    run = torch.compile(net, backend=counter)
    run(BATCH)
    with frozen(net, "0"):
        run(BATCH)
    assert counter.frame_count == 1
