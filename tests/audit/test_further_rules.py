"""What the audit finds of models that train: recomputation, NaN, layers that no optimizer holds."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_bninvariants import InvariantBroken, bn_updates
from tests.audit.audits import Audited, audited, train
from tests.engine import Net

Step = Callable[[Tensor], object]


def audit(step: Step, batch: Tensor) -> Audited:
    with audited() as said:
        step(batch)
    return said


def step_through(model: nn.Module, output: Tensor) -> None:
    output.square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


# recomputation


def checkpointed(batch: Tensor, *, use_reentrant: bool, model: nn.Module | None = None) -> None:
    model = model or Net()
    batch = batch.clone().requires_grad_()
    step_through(model, checkpoint(model, batch, use_reentrant=use_reentrant))


class CheckpointedInside(nn.Module):
    """A model that checkpoints a part of itself, twice in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, batch: Tensor) -> Tensor:
        return checkpoint(self.net.backbone, batch, use_reentrant=False).mean(-1)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_that_updates_statistics_again_is_told(
    use_reentrant: bool, batch: Tensor
) -> None:
    said = audit(lambda each: checkpointed(each, use_reentrant=use_reentrant), batch)
    assert said.rules == ("recomputation",)
    (verdict,) = said.verdicts
    (cause,) = verdict.causes
    assert (cause.name, cause.layers) == ("recomputation", ("backbone.bn", "neck"))
    assert verdict.changed_layers == ("backbone.bn", "neck")
    assert "updated 1 time in backward" in cause.why


def test_layers_in_a_checkpointed_part_have_the_names_of_the_model(batch: Tensor) -> None:
    model = CheckpointedInside()

    def step(batch: Tensor) -> None:
        for _ in range(3):
            step_through(model, model(batch))

    (verdict,) = audit(step, batch).verdicts
    assert verdict.model == "CheckpointedInside"
    assert verdict.changed_layers == ("net.backbone.bn",)
    assert "updated 3 times in backward" in verdict.causes[0].why


def with_momentum_0(batch: Tensor) -> None:
    model = Net()
    model.backbone.bn.momentum = model.neck.momentum = 0.0
    checkpointed(batch, use_reentrant=False, model=model)


def in_eval(batch: Tensor) -> None:
    model = Net().eval().requires_grad_(False)
    checkpoint(model, batch.clone().requires_grad_(), use_reentrant=False).mean().backward()


def without_recomputation(batch: Tensor) -> None:
    model = Net()
    for _ in range(3):
        step_through(model, model(batch))


def test_a_guard_that_counts_updates_judges_them_alone(batch: Tensor) -> None:
    model = Net()

    def step(batch: Tensor) -> None:
        with pytest.raises(InvariantBroken, match="recomputation"), bn_updates(model, "*"):
            checkpointed(batch, use_reentrant=False, model=model)

    assert audit(step, batch).rules == ()


@pytest.mark.parametrize("step", [with_momentum_0, in_eval, without_recomputation])
def test_what_updates_once_is_silent(step: Step, batch: Tensor) -> None:
    said = audit(step, batch)
    assert said.rules == ()


# not-finite


def a_batch_of_nan(batch: Tensor) -> nn.Module:
    model = Net()
    train(model, batch)
    train(model, batch * float("nan"))
    return model


def an_infinite_batch(batch: Tensor) -> nn.Module:
    model = Net()
    train(model, batch * float("inf"))
    return model


@pytest.mark.parametrize("step", [a_batch_of_nan, an_infinite_batch])
def test_statistics_that_are_not_finite_are_told_though_the_model_is_gone(
    step: Step, batch: Tensor
) -> None:
    with audited() as said:
        step(batch)
    assert said.rules == ("not-finite",)
    (verdict,) = said.verdicts
    assert verdict.changed_layers == ("backbone.bn", "neck")
    assert "values are not finite" in verdict.changes[0].text
    assert verdict.causes[0].name == "not-finite"
    assert "every eval will give NaN" in verdict.causes[0].why


def test_a_negative_variance_is_told(batch: Tensor) -> None:
    model = Net()

    def step(batch: Tensor) -> None:
        train(model, batch)
        model.neck.running_var[0] = -1

    (verdict,) = audit(step, batch).verdicts
    (change,) = verdict.changes
    assert (change.name, change.text.partition(" of")[0]) == ("neck.running_var", "1")
    assert change.text.endswith("values are negative")


def undone(batch: Tensor) -> None:
    model = Net()
    good = copy.deepcopy(model.state_dict())
    train(model, batch * float("nan"))
    model.load_state_dict(good)


def never_run_in_training_mode(batch: Tensor) -> None:
    model = Net().eval()
    model.neck.running_mean.fill_(float("nan"))
    model(batch)


@pytest.mark.parametrize("step", [undone, never_run_in_training_mode, without_recomputation])
def test_finite_statistics_are_silent(step: Step, batch: Tensor) -> None:
    assert audit(step, batch).rules == ()


# not-in-optimizer


def train_with(model: nn.Module, batch: Tensor, *groups: list[nn.Parameter]) -> None:
    optimizers = [torch.optim.SGD(group, lr=0.1) for group in groups]
    for _ in range(2):
        model.train()(batch).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def rest_of(model: Net) -> list[nn.Parameter]:
    return [each for name, each in model.named_parameters() if not name.startswith("head")]


def head_of(model: Net) -> list[nn.Parameter]:
    return list(model.head.parameters())


def test_a_head_with_gradients_that_no_optimizer_holds_is_told(batch: Tensor) -> None:
    model = Net()
    said = audit(lambda each: train_with(model, each, rest_of(model)), batch)
    assert said.rules == ("not-in-optimizer",)
    (verdict,) = said.verdicts
    (cause,) = verdict.causes
    assert (cause.name, cause.layers) == ("not-in-optimizer", ("head",))
    assert [change.name for change in verdict.changes] == ["head.weight", "head.bias"]
    assert "has gradients when SGD first trains Net" in cause.why
    assert cause.place is not None
    assert cause.place.function == "train_with"
    assert said.markers == ('@pytest.mark.trains("head")',)


def held_by_two_optimizers(batch: Tensor) -> None:
    model = Net()
    train_with(model, batch, rest_of(model), head_of(model))


def held_by_a_later_optimizer(batch: Tensor) -> None:
    model = Net()
    train_with(model, batch, rest_of(model))
    train_with(model, batch, head_of(model))


def held_by_an_optimizer_that_never_steps(batch: Tensor) -> None:
    model = Net()
    kept = torch.optim.Adam(head_of(model))
    train_with(model, batch, rest_of(model))
    assert kept.param_groups


def frozen(batch: Tensor) -> None:
    model = Net()
    model.head.requires_grad_(False)
    train_with(model, batch, rest_of(model))


def of_another_model(batch: Tensor) -> None:
    generator, judge = nn.Linear(batch.shape[-1], batch.shape[-1]), Net()
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    judge(generator(batch)).mean().backward()
    optimizer.step()


def without_a_gradient(batch: Tensor) -> None:
    model = Net()
    model.aside = nn.Linear(1, 1)
    train_with(
        model, batch, [*model.backbone.parameters(), *model.neck.parameters()], head_of(model)
    )


@pytest.mark.parametrize(
    "step",
    [
        without_a_gradient,
        held_by_two_optimizers,
        held_by_a_later_optimizer,
        held_by_an_optimizer_that_never_steps,
        frozen,
        of_another_model,
    ],
)
def test_layers_that_an_optimizer_holds_or_that_are_frozen_are_silent(
    step: Step, batch: Tensor
) -> None:
    assert audit(step, batch).rules == ()


# markers and counts


def test_a_marker_covers_what_leaks_and_no_layer_that_trains(batch: Tensor) -> None:
    model = Net()
    model.backbone.requires_grad_(False)
    said = audit(lambda each: train(model, each), batch)
    assert said.rules == ("frozen-moved",)
    assert said.markers == ('@pytest.mark.frozen_bn("backbone")',)


def test_a_marker_for_all_layers_names_none(batch: Tensor) -> None:
    model = Net().requires_grad_(False)
    said = audit(lambda each: model.train()(each), batch)
    assert said.markers == ("@pytest.mark.frozen_bn",)
