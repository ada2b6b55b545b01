"""What an optimizer's step does to a frozen tensor is told by what was seen of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.optim.lookahead import Lookahead
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.state_change.rules.branches import (
    Branches,
    batch,
    cause_of,
    the_cause,
    train,
    verdict_of,
)

OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "ASGD": (torch.optim.ASGD, {}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "Adafactor": (getattr(torch.optim, "Adafactor", torch.optim.Adam), {}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "Adam": (torch.optim.Adam, {}),
    "AdamW": (torch.optim.AdamW, {}),
    "Adamax": (torch.optim.Adamax, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "RAdam": (torch.optim.RAdam, {}),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9}),
    "Rprop": (torch.optim.Rprop, {}),
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
}


FORMS: dict[str, dict[str, Any]] = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


FUSED = ("SGD", "Adam", "AdamW", "Adagrad")


WITH_MOMENTS = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RMSprop")


def made(name: str, form: str, parameters: Any, **options: Any) -> Optimizer:
    kind, given = OPTIMIZERS[name]
    if form == "fused" and name not in FUSED:
        pytest.skip(f"{name} has no fused form")
    try:
        return kind(parameters, lr=0.05, **{**given, **FORMS[form], **options})
    except (TypeError, RuntimeError, ValueError) as error:
        pytest.skip(f"this torch has no such form of {name}: {error}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_with_a_gradient(model: Branches, name: str, form: str) -> None:
    optimizer = made(name, form, model.parameters())
    cause = the_cause(verdict_of(model, lambda: train(model, optimizer)))
    assert cause.name == "gradient-step"
    assert cause.place.function == "train"
    assert cause.place.call == f"{type(optimizer).__name__}.step()"
    assert cause.place.tool is None
    assert "requires_grad is True" in cause.why


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_a_step_with_a_gradient_of_zeros_and_moments(model: Branches, name: str, form: str) -> None:
    optimizer = made(name, form, model.parameters())
    train(model, optimizer)
    model.frozen.requires_grad_(False)
    for parameter in model.frozen.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        model(batch()).square().mean().backward()
        optimizer.step()

    cause = the_cause(verdict_of(model, step))
    assert cause.name == "stale-momentum"
    assert "with a gradient of zeros" in cause.why
    assert "set .grad = None" in cause.fix


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_a_step_with_a_gradient_of_zeros_and_weight_decay(
    model: Branches, name: str, form: str
) -> None:
    optimizer = made(name, form, model.parameters(), weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    cause = the_cause(verdict_of(model, optimizer.step))
    assert cause.name == "weight-decay"
    assert "(weight_decay=0.1)" in cause.why


def test_decoupled_weight_decay_is_told_from_moments_by_its_factor(model: Branches) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # its moments come from the decay alone
    cause = the_cause(verdict_of(model, optimizer.step))
    assert cause.name == "weight-decay"
    assert "all values by the factor 0.99" in cause.why


def test_a_gradient_is_the_news_even_where_it_comes_after_a_stale_step(model: Branches) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    optimizer.zero_grad(set_to_none=False)

    def step() -> None:
        optimizer.step()
        train(model, optimizer)

    assert the_cause(verdict_of(model, step)).name == "gradient-step"


def test_a_gradient_of_a_parameter_that_asks_for_none(model: Branches) -> None:
    model(batch()).sum().backward()
    model.frozen.requires_grad_(False)
    cause = the_cause(verdict_of(model, torch.optim.SGD(model.parameters(), lr=0.1).step))
    assert cause.name == "gradient-step"
    assert "requires_grad is False, but an optimizer only looks at .grad" in cause.why


def test_one_parameter_that_asks_for_a_gradient_is_enough_to_say_so(model: Branches) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(batch()).sum().backward()
    model.frozen.bias.requires_grad_(False)
    cause = the_cause(verdict_of(model, optimizer.step))
    assert cause.tensors == ("frozen.weight", "frozen.bias")
    assert cause.why.endswith("; requires_grad is True")
    assert cause.fix.startswith("call requires_grad_(False) on frozen.weight and frozen.bias")


def test_of_two_steps_with_a_gradient_the_first_is_told(model: Branches) -> None:
    def first() -> None:
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def second() -> None:
        train(model, torch.optim.Adam(model.parameters()))

    cause = the_cause(verdict_of(model, lambda: (first(), second())))
    assert cause.place.call == "SGD.step()"
    assert "in a step of SGD (group 0)" in cause.why


def test_requires_grad_that_is_switched_on_in_the_step(model: Branches) -> None:
    model.frozen.requires_grad_(False)

    def step() -> None:
        model.requires_grad_(True)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))

    cause = the_cause(verdict_of(model, step))
    assert cause.name == "gradient-step"
    assert "requires_grad was switched on during the step" in cause.why


class Shrinking(Optimizer):
    """Decay whatever it holds, with a gradient or without, by ways that no version counts."""

    def __init__(self, parameters: Any, factor: float) -> None:
        super().__init__(parameters, {"factor": factor})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(group["factor"])


def test_an_optimizer_of_somebodys_own_that_decays_without_a_gradient(model: Branches) -> None:
    cause = the_cause(verdict_of(model, Shrinking(model.parameters(), 0.75).step))
    assert cause.name == "weight-decay"
    assert "Shrinking (group 0) with no gradient, all values by the factor 0.75" in cause.why


def test_an_optimizer_of_somebodys_own_that_grows_without_a_gradient(model: Branches) -> None:
    cause = the_cause(verdict_of(model, Shrinking(model.parameters(), 1.5).step))
    assert cause.name == "in-place"
    assert "moved in a step of Shrinking (group 0) with no gradient" in cause.why


def test_an_optimizer_that_writes_the_last_values_alone_without_a_gradient() -> None:
    class Tail(Shrinking):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                self.param_groups[0]["params"][0][-1].mul_(0.5)

    model = nn.ModuleDict({"frozen": nn.Linear(8, 8)})
    cause = the_cause(verdict_of(model, Tail([model["frozen"].weight], 1.0).step))
    assert "moved in a step of Tail (group 0) with no gradient" in cause.why


def test_the_group_that_holds_the_tensor_is_named(model: Branches) -> None:
    groups = [{"params": model.head.parameters()}, {"params": model.frozen.parameters()}]
    cause = the_cause(verdict_of(model, lambda: train(model, torch.optim.SGD(groups, lr=0.1))))
    assert "SGD (group 1)" in cause.why


def test_two_optimizers_are_two_causes(model: Branches) -> None:
    weight = torch.optim.SGD([model.frozen.weight], lr=0.1)
    bias = torch.optim.Adam([model.frozen.bias])

    def step() -> None:
        model(batch()).sum().backward()
        weight.step()
        bias.step()

    causes = verdict_of(model, step).causes
    assert [(cause.name, cause.tensors) for cause in causes] == [
        ("gradient-step", ("frozen.weight",)),
        ("gradient-step", ("frozen.bias",)),
    ]


def test_a_step_under_a_gradient_scaler_names_the_scaler(model: Branches) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")

    def step() -> None:
        scaler.scale(model(batch()).sum()).backward()
        scaler.step(optimizer)

    cause = the_cause(verdict_of(model, step))
    assert cause.name == "gradient-step"
    assert cause.place.tool.startswith("torch.amp.grad_scaler.")
    assert cause.place.function == "step"


def test_a_step_under_a_learning_rate_scheduler_is_the_users_own(model: Branches) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert the_cause(verdict_of(model, lambda: train(model, optimizer))).place.tool is None


def test_an_optimizer_that_holds_a_tensor_and_leaves_it_is_not_blamed(model: Branches) -> None:
    model.frozen.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)

    def step() -> None:
        train(model, optimizer)
        with torch.no_grad():
            model.frozen.weight.mul_(2)

    assert the_cause(verdict_of(model, step)).name == "in-place"


def closure_of(
    model: Branches, optimizer: Optimizer, *, backward: bool = True
) -> Callable[[], Any]:
    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = model(batch()).square().mean()
        if backward:
            loss.backward()
        return loss.detach()

    return closure


@pytest.mark.parametrize("name", ["SGD", "AdamW", "LBFGS"])
@pytest.mark.parametrize("stale", [True, False])
def test_a_step_with_a_closure_has_the_gradients_that_this_computes(
    model: Branches, name: str, stale: bool
) -> None:
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
    closure = closure_of(model, optimizer)
    if stale:
        closure()
        optimizer.zero_grad(set_to_none=False)
    cause = cause_of(model, lambda: optimizer.step(closure))
    assert cause.name == "gradient-step"
    assert cause.place.call == f"{name}.step()"


def test_a_closure_that_leaves_no_gradient_leaves_weight_decay(model: Branches) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    closure_of(model, optimizer)()
    closure = closure_of(model, optimizer, backward=False)
    assert cause_of(model, lambda: optimizer.step(closure=closure)).name == "weight-decay"


def test_a_step_of_what_shares_a_tensors_memory(model: Branches) -> None:
    other = Branches()
    model.load_state_dict(other.state_dict(), assign=True)
    model.requires_grad_(False)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    cause = cause_of(model, lambda: optimizer.step(closure_of(other, optimizer)))
    assert cause.name == "gradient-step"
    assert "the optimizer holds others with the same memory" in cause.why
    assert "copy.deepcopy" in cause.fix


def test_shared_memory_is_spoken_of_only_where_all_that_moved_shares_it(model: Branches) -> None:
    other = Branches()
    model.frozen.weight = nn.Parameter(other.frozen.weight.detach(), requires_grad=False)
    optimizer = torch.optim.SGD([other.frozen.weight, model.frozen.bias], lr=0.1)
    other.frozen.weight.grad = torch.ones(3, 3)
    model.frozen.bias.grad = torch.ones(3)
    cause = cause_of(model, optimizer.step)
    assert (cause.name, cause.tensors) == ("gradient-step", ("frozen.weight", "frozen.bias"))
    assert "same memory" not in cause.why


def test_a_tensor_that_is_tied_to_what_trains_is_said_to_be() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.a.weight = self.b.weight

        def forward(self, batch: Tensor) -> Tensor:
            return self.b(batch)

    model = Tied()

    def cause(*modules: str) -> Any:
        optimizer = torch.optim.SGD(model.b.parameters(), lr=0.1)
        return verdict_of(model, lambda: train(model, optimizer), *modules).causes[0]

    told = cause("a")
    assert (told.name, told.tensors) == ("gradient-step", ("a.weight",))
    assert told.why.endswith("; a.weight is tied to b.weight")
    assert told.fix.endswith("that freezes b.weight too, unless a.weight gets its own memory")
    both = cause("a", "b")
    assert both.tensors == ("a.weight", "b.weight", "b.bias")
    assert "tied" not in both.why


def test_moments_of_an_lbfgs_are_those_of_all_that_it_holds(model: Branches) -> None:
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    optimizer.step(closure_of(model, optimizer))
    for parameter in model.frozen.requires_grad_(False).parameters():
        parameter.grad = None
    cause = cause_of(model, lambda: optimizer.step(closure_of(model, optimizer)))
    assert cause.name == "stale-momentum"
    assert cause.tensors == ("frozen.weight", "frozen.bias")
    assert cause.fix == "build a new optimizer without them"


def test_slow_weights_of_an_optimizer_around_another_are_moments(model: Branches) -> None:
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=2)
    for _ in range(3):
        closure_of(model, optimizer)()
        optimizer.step()
    model.frozen.requires_grad_(False)
    optimizer.zero_grad(set_to_none=False)
    assert cause_of(model, optimizer.step).name == "stale-momentum"


def test_what_wraps_an_optimizer_unseen_is_named_as_what_may_have_written(model: Branches) -> None:
    class Wrapper:
        def __init__(self, inner: Optimizer) -> None:
            self.inner = inner

        def step(self) -> None:
            self.inner.step()
            with torch.no_grad():
                model.frozen.weight.mul_(0.5)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    why = cause_of(model, Wrapper(optimizer).step).why
    assert "stepped without moving it, but an optimizer that wraps it may have" in why
