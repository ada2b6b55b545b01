"""Parameters that an optimizer with a gradient left as they were, or that had no values before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pytest_bninvariants import InvariantBroken, InvariantHazard, trains
from tests.invariants.trains.steps import Net, batch, broken, causes, step
from tests.watching import watching


class Late(torch.optim.SGD):
    """An optimizer whose first step only looks at the gradients, as ADOPT's does."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 0.1) -> None:
        super().__init__(parameters, lr=lr)
        self.steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return None if self.steps == 1 else super().step(closure)


def test_an_optimizer_that_skips_its_first_step_is_told_as_that() -> None:
    net = Net()
    optimizer = Late(net.parameters())
    (cause,) = broken(net, lambda: step(net, optimizer)).causes
    assert cause.name == "skipped"
    assert "when Late stepped, which left them as they were" in cause.why
    net = Net()
    optimizer = Late(net.parameters())
    with watching(trains(net), layers=4):
        step(net, optimizer)
        step(net, optimizer)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_that_bfloat16_rounds_away_is_not_called_skipped(kind: Callable[..., Any]) -> None:
    net = Net().to(torch.bfloat16)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(64.0)
    optimizer = kind(net.parameters(), lr=1e-4)

    def guarded() -> None:
        net(torch.ones(8, 3, dtype=torch.bfloat16)).mean().backward()
        optimizer.step()

    assert list(causes(broken(net, guarded))) == ["rounded-away"]


def test_an_optimizer_without_a_learning_rate_is_not_said_to_have_one_of_0() -> None:
    class Own(torch.optim.SGD):
        """It finds its rate by itself, as Adafactor does, and writes nothing here."""

        def step(self, closure: Any = None) -> Any:
            return None

    net = Net()
    optimizer = Own(net.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = None
    assert list(causes(broken(net, lambda: step(net, optimizer)))) == ["skipped"]


def test_of_several_steps_the_most_that_there_was_of_a_gradient_counts() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-12)

    def guarded() -> None:
        step(net, optimizer)
        optimizer.zero_grad()
        optimizer.step()

    assert list(causes(broken(net, guarded))) == ["rounded-away"]


def test_a_step_with_a_learning_rate_of_0_excuses_no_move_of_a_large_tensor() -> None:
    layer = nn.Linear(40, 40)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)

    def guarded() -> None:
        layer(torch.randn(4, 40)).square().mean().backward()
        optimizer.step()
        layer.weight.data.add_(torch.randn(40, 40))

    assert causes(broken(layer, guarded)) == {"in-place": ("weight",), "learning-rate-0": ("bias",)}


def test_the_learning_rates_of_several_groups_are_told_by_the_largest() -> None:
    net = Net()
    groups = [
        {"params": net.body.parameters(), "lr": 1e-20},
        {"params": net.head.parameters(), "lr": 1e-18},
    ]
    verdict = broken(net, lambda: step(net, torch.optim.SGD(groups)))
    (cause,) = verdict.causes
    assert cause.layers == ("body.weight", "body.bias", "head.weight", "head.bias")
    assert "and a learning rate of up to 1e-18: in float32 such a step" in cause.why


@pytest.mark.parametrize("rates", [(1e-12, 0.0), (0.0, 1e-12), (1e-15, 1e-12)])
def test_of_several_steps_the_largest_learning_rate_counts(rates: tuple[float, float]) -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def guarded() -> None:
        for optimizer.param_groups[0]["lr"] in rates:
            step(net, optimizer)

    verdict = broken(net, guarded)
    assert list(causes(verdict)) == ["rounded-away"]
    assert all("stepped with lr 1e-12" in change.text for change in verdict.changes)


def test_a_layer_that_holds_its_weight_as_a_buffer_need_not_update_in_a_part_that_trains() -> None:
    model = nn.ModuleDict(
        {"body": nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4)), "other": nn.Linear(1, 1)}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(trains(model, "body"), layers=2):
        model["body"](torch.randn(2, 3, 4, 4)).square().mean().backward()
        optimizer.step()


class FarLinear(nn.LazyLinear):
    """A layer with a bias that a small step does not reach."""

    def initialize_parameters(self, input: Tensor) -> None:
        super().initialize_parameters(input)
        nn.init.constant_(self.bias, 100.0)


def lazy() -> nn.Module:
    return nn.Sequential(FarLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(1))


def test_a_bias_that_begins_in_the_block_may_stand_still_before_a_batch_norm() -> None:
    model = lazy()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.001
    )  # far too little for what rounding leaves in a sum
    with (
        pytest.warns(InvariantHazard, match=r"0\.bias: did not move: .* bias before a BatchNorm"),
        watching(trains(model), layers=7),
    ):
        step(model, optimizer)


def test_a_lazy_parameter_that_only_began_did_not_train() -> None:
    model = lazy()
    optimizer = torch.optim.SGD([*model.parameters()][:4], lr=0.1)
    assert causes(broken(model, lambda: step(model, optimizer), buffers=False)) == {
        "not-in-optimizer": ("2.weight", "2.bias")
    }
    model = lazy()
    assert causes(broken(model, lambda: model(batch()), buffers=False)) == {
        "not-in-optimizer": tuple(name for name, _ in model.named_parameters())
    }


@pytest.mark.parametrize("all_of_it", [True, False])
def test_what_was_nan_before_did_not_train(*, all_of_it: bool) -> None:
    net = Net()
    with torch.no_grad():
        for parameter in net.parameters() if all_of_it else [net.body.weight]:
            parameter.fill_(float("nan"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    verdict = broken(net, lambda: step(net, optimizer))
    assert {cause.name for cause in verdict.causes} == {"not-finite"}
    assert "body.weight" in verdict.changed_layers
    assert "body.weight" not in "".join(hazard.text for hazard in verdict.hazards)
    told = {change.name: change.text for change in verdict.changes}
    assert told["body.weight"].endswith("and a gradient that is not finite")


def test_a_layer_that_bfloat16_rounds_away_breaks_though_another_of_its_group_moves() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(torch.bfloat16)
    for layer, size in zip(model, (1e-6, 1.0), strict=True):
        for parameter in layer.parameters():
            parameter.data.fill_(1)
            parameter.grad = torch.full_like(parameter, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvariantBroken) as raised, trains(model):
        optimizer.step()
    assert raised.value.verdict.changed_layers == ("0.weight", "0.bias")
    assert "rounded-away" in {cause.name for cause in raised.value.verdict.causes}
