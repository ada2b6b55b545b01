"""Updates are counted for each step of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants import GateError, bn_updates
from tests.invariants.bn_updates.steps import Net, broken, told, train, values
from tests.watching import watching


def test_each_step_of_an_optimizer_can_be_counted() -> None:
    model = Net()

    def epoch() -> None:
        for seed in range(3):
            train(model, values(seed))

    with watching(bn_updates(model, per="optimizer_step"), layers=1):
        epoch()
    assert told(broken(model, epoch)) == [("bn", "3 updates, expected 1")]
    of_steps = bn_updates(model, per="optimizer_step")
    with pytest.raises(GateError, match="no optimizer that holds the model's param"), of_steps:
        train(model, values(), step=False)


class Renamed(torch.optim.SGD):
    """An optimizer whose step is its parent's, which torch hooks too once a plain SGD was made."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Sam(Optimizer):
    """Sharpness-aware minimisation, around another optimizer."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"rho": 0.05})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        kept = [p.clone() for p in held]
        for p in held:
            p.add_(p.grad, alpha=0.05)
        if closure is not None:
            with torch.enable_grad():
                closure()
        for p, value in zip(held, kept, strict=True):
            p.copy_(value)
        self.base.step()


@pytest.mark.parametrize("kind", [Renamed, Sam])
def test_a_step_of_an_optimizer_inside_anothers_is_part_of_it(
    kind: Callable[[Iterable[nn.Parameter]], Optimizer],
) -> None:
    model = Net()
    torch.optim.SGD(model.parameters())
    optimizer = kind(model.parameters())
    with watching(bn_updates(model, per="optimizer_step"), layers=1):
        for seed in range(3):
            model(values(seed)).square().mean().backward()
            optimizer.step()


def test_a_second_forward_inside_of_an_optimizers_step_has_the_batch_of_the_first() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = Sam(model.parameters())

    def closure() -> Tensor:
        loss = model(values()).square().mean()
        loss.backward()
        return loss

    verdict = broken(model, lambda: (closure(), optimizer.step(closure)), times=2)
    assert told(verdict) == [("0", "1 update with a batch that it had already used")]


def test_each_of_several_optimizers_steps_counts_and_one_that_raises_does_not() -> None:
    model = Net()
    optimizers = [torch.optim.SGD([each], lr=0.1) for each in model.parameters()]
    lbfgs = torch.optim.LBFGS(model.parameters())

    def fails() -> float:
        raise ValueError

    with watching(bn_updates(model, per="optimizer_step"), layers=1):
        for optimizer in optimizers:
            with suppress(ValueError):
                lbfgs.step(fails)
            model(torch.randn(8, 3)).square().mean().backward()
            optimizer.step()


def test_one_batch_may_update_once_in_each_optimizers_step_and_not_twice() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))

    def overfit(*, steps: bool) -> None:
        for _ in range(3):
            train(model, values(), step=steps)

    with watching(bn_updates(model, times=3), layers=1):
        overfit(steps=True)
    verdict = broken(model, lambda: overfit(steps=False), times=3)
    assert told(verdict) == [("0", "2 updates with a batch that it had already used")]


def test_batches_of_equal_means_are_told_apart() -> None:
    model = nn.BatchNorm1d(3)
    with watching(bn_updates(model, times=2), layers=1):
        for seed in range(2):
            half = values(seed)
            model(torch.cat([half, -half]))


def test_a_layer_that_stays_in_eval_after_a_validation_is_told_with_the_line() -> None:
    model = Net()

    def validate(*, and_go_on_training: bool) -> None:
        model.eval()
        with torch.no_grad():
            model(values(9))
        if and_go_on_training:
            model.train()

    def epochs(*, number: int, trains_on: bool) -> None:
        for seed in range(number):
            train(model, values(seed))
            validate(and_go_on_training=trains_on)

    verdict = broken(model, lambda: epochs(number=3, trains_on=False), per="optimizer_step")
    assert told(verdict) == [("bn", "1 update, expected 3")]
    (cause,) = verdict.causes
    assert cause.name == "stuck-in-eval"
    assert "in each forward before 2 steps of an optimizer" in cause.why
    assert "validation" in cause.fix
    assert cause.place is not None
    assert (cause.place.call, cause.place.function) == ("Net.eval()", "validate")
    model.train()
    with watching(bn_updates(model, per="optimizer_step"), layers=1):
        epochs(number=3, trains_on=True)
    verdict = broken(model, lambda: epochs(number=2, trains_on=True), per="optimizer_step", times=2)
    assert [cause.name for cause in verdict.causes] == ["fewer-forwards"]


def test_too_few_updates_for_the_steps_of_several_optimizers_are_told_as_that() -> None:
    model = Net()
    optimizers = [torch.optim.SGD([each], lr=0.1) for each in model.parameters()]

    def step() -> None:
        model(values()).square().mean().backward()
        for optimizer in optimizers[:2]:
            optimizer.step()

    (cause,) = broken(model, step, per="optimizer_step").causes
    assert cause.name == "fewer-forwards"
    assert cause.why.endswith("are expected: 1 for each of 2 steps of optimizers")
    assert "leave out per=, and pass the number of forwards as times=" in cause.fix
    with watching(bn_updates(model), layers=1):
        step()


def test_a_step_that_a_layer_was_updated_in_is_not_one_that_it_spent_in_eval() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def steps() -> None:
        for seed in range(2):
            model.train()(values(seed)).square().mean().backward()
            model.eval()(values(9))
            optimizer.step()

    verdict = broken(model, steps, per="optimizer_step", times=2)
    assert [cause.name for cause in verdict.causes] == ["fewer-forwards"]


def test_a_layer_updated_once_in_each_step_beside_one_updated_twice_keeps_the_general_advice() -> (
    None
):
    model = nn.ModuleDict({"once": nn.BatchNorm1d(3), "twice": nn.BatchNorm1d(3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def steps() -> None:
        for seed in range(2):
            model["twice"](values(seed + 5))
            model["twice"](model["once"](values(seed))).square().mean().backward()
            optimizer.step()

    verdict = broken(model, steps)
    assert told(verdict) == [
        ("once", "2 updates, expected 1"),
        ("twice", "4 updates, expected 1"),
    ]
    (cause,) = verdict.causes
    assert cause.layers == ("once", "twice")
    assert cause.fix.startswith("run what is not meant to train in eval")
