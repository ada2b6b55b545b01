"""What writes frozen parameters is an average of models only where it looks like one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.audit.averaging_check import FrozenParameters
from pytest_bninvariants.torch_internals.isolation import undisturbed
from tests.audit.audits import frozen_backbone, leaks_of, train
from tests.engine import Net


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


# One step of a momentum encoder that is averaged before its only forward.


def by_data(slow: Tensor, fast: Tensor) -> None:
    slow.data = slow.data * 0.9 + fast.data * 0.1


def in_place(slow: Tensor, fast: Tensor) -> None:
    slow.mul_(0.9).add_(fast, alpha=0.1)


def by_lerp(slow: Tensor, fast: Tensor) -> None:
    slow.lerp_(fast, 0.1)


def by_a_copy(slow: Tensor, fast: Tensor) -> None:
    slow.copy_(slow * 0.9 + fast * 0.1)


def by_foreach(slow: Tensor, fast: Tensor) -> None:
    torch._foreach_lerp_([slow], [fast], 0.1)


def frozen_one_by_one(teacher: nn.Module) -> None:
    for parameter in teacher.parameters():
        parameter.requires_grad = False


def frozen_at_once(teacher: nn.Module) -> None:
    teacher.requires_grad_(False)


def not_frozen(_: nn.Module) -> None:
    """It runs under no_grad only."""


AVERAGES = [by_data, in_place, by_lerp, by_a_copy, by_foreach]


@pytest.mark.parametrize("freeze", [frozen_one_by_one, frozen_at_once, not_frozen])
@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_before_the_only_forward_is_one(
    average: Callable[[Tensor, Tensor], None], freeze: Callable[[nn.Module], None], batch: Tensor
) -> None:
    def step() -> None:
        student = Net()
        teacher = copy.deepcopy(student)
        freeze(teacher)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                average(slow, fast)
            target = teacher(batch)
        (student(batch) - target).square().mean().backward()
        optimizer.step()

    assert leaks_of(step) == []


def test_an_average_inside_the_forward_of_a_model_is_one_also_without_parameters_of_the_layer(
    batch: Tensor,
) -> None:
    class Contrast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3, affine=False))
            self.key = copy.deepcopy(self.query).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                    by_data(slow, fast)
                target = self.key(x)
            return (self.query(x) - target).square().mean()

    assert leaks_of(lambda: Contrast()(batch).backward()) == []


def nothing(teacher: nn.Module, student: nn.Module) -> None:
    pass


def a_load(teacher: nn.Module, student: nn.Module) -> None:
    teacher.load_state_dict(student.state_dict())


def a_part_of_it(teacher: nn.Module, student: nn.Module) -> None:
    with torch.no_grad():
        teacher.get_parameter("backbone.bn.weight").mul_(0.9)


@pytest.mark.parametrize("before", [nothing, a_load, a_part_of_it])
def test_what_is_no_average_before_the_only_forward_hides_no_leak(
    before: Callable[[nn.Module, nn.Module], None], batch: Tensor
) -> None:
    class Teacher(Net):
        """The same layers under another name."""

    def step() -> None:
        student, teacher = Net(), Teacher().requires_grad_(False)
        before(teacher, student)
        with torch.no_grad():
            target = teacher(batch)
        (student(batch) - target).square().mean().backward()

    (leaks,) = leaks_of(step)
    assert "neck" in leaks


def test_weights_that_are_initialised_where_no_other_model_trains_hide_no_leak(
    batch: Tensor,
) -> None:
    def step() -> None:
        model = frozen_backbone().requires_grad_(False)
        for parameter in model.parameters():
            parameter.data.fill_(0.5)
        model(batch)

    assert leaks_of(step) == [("backbone.bn", "neck")]


def test_weights_that_were_trained_before_they_were_frozen_are_no_average(batch: Tensor) -> None:
    def step() -> None:
        model, other = Net(), Net()
        optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
        model.eval()
        for _ in range(2):
            (model(batch) + other(batch)).square().mean().backward()
            optimizer.step()
        model.requires_grad_(False).train()
        model(batch)

    assert leaks_of(step) == [("backbone.bn", "neck")]


def test_a_model_that_trained_by_hand_and_was_frozen_then_is_no_average(batch: Tensor) -> None:
    model, other = Net(), Net()

    def step() -> None:
        list(model.parameters())
        model.train()(batch)
        for parameter in model.parameters():
            parameter.data.mul_(0.5)
        train(other, batch)
        model.requires_grad_(False)
        model(batch)

    assert leaks_of(step) == [("backbone.bn", "neck")]


def test_one_parameter_tells_for_all_whether_an_optimizer_holds_it_or_has_its_gradient() -> None:
    layer = nn.BatchNorm1d(2)
    with undisturbed():
        parameters = FrozenParameters(layer)
    weight, bias = id(layer.weight), id(layer.bias)
    assert [parameters.are_in(held) for held in ({weight}, {bias, 1}, {1})] == [True, True, False]
    assert not parameters.have_gradients_in({weight, bias})
    layer.weight.grad = torch.ones(2)
    assert [parameters.have_gradients_in(held) for held in ({weight, bias}, {bias})] == [
        True,
        False,
    ]
    assert parameters.lie_in({layer.weight.data_ptr()})
    assert not parameters.lie_in({1})
    assert parameters.are_of(layer)
    layer.weight = nn.Parameter(torch.ones(2))
    assert not parameters.are_of(layer)
