"""What writes frozen parameters is an average of models only where it looks like one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.audit.audits import frozen_backbone, leaks_of, train


def reloaded(model: nn.Module, batch: Tensor) -> None:
    train(model, batch)
    model.load_state_dict(copy.deepcopy(model.state_dict()))


def reloaded_with_a_key_too_many(model: nn.Module, batch: Tensor) -> None:
    train(model, batch)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(copy.deepcopy(model.state_dict()) | {"more": torch.ones(1)})


def put_back_to_its_best(model: nn.Module, batch: Tensor) -> None:
    train(model, batch)
    best = copy.deepcopy(model.state_dict())
    train(model, batch)
    model.load_state_dict(best)


def initialised_in_part(model: nn.Module, batch: Tensor) -> None:
    train(model, batch)
    nn.init.ones_(model.get_parameter("backbone.bn.weight"))


def decayed(model: nn.Module, batch: Tensor) -> None:
    frozen = model.get_submodule("backbone")
    for parameter in frozen.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    for _ in range(2):
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def stepped_without_a_gradient(model: nn.Module, batch: Tensor) -> None:
    class Touching(torch.optim.Optimizer):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter.mul_(1)

    model(batch)
    Touching(model.parameters(), {}).step()


@pytest.mark.parametrize(
    "step",
    [
        reloaded,
        reloaded_with_a_key_too_many,
        put_back_to_its_best,
        initialised_in_part,
        decayed,
        stepped_without_a_gradient,
    ],
)
def test_what_writes_frozen_parameters_and_is_no_average_hides_no_leak(
    step: Callable[[nn.Module, Tensor], None], batch: Tensor
) -> None:
    model = frozen_backbone()
    assert leaks_of(lambda: step(model, batch)) == [("backbone.bn",)]


@pytest.mark.parametrize("then", [reloaded, decayed])
def test_an_average_before_a_load_or_a_step_is_still_one(
    then: Callable[[nn.Module, Tensor], None], batch: Tensor
) -> None:
    model = frozen_backbone()

    def step() -> None:
        model(batch)
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter.mul_(0.9)
        then(model, batch)

    assert leaks_of(step) == []
