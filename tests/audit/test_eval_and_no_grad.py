"""What an audit tells of layers in eval, and of those that only run under no_grad."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.verdict import Cause
from tests.audit.audits import audited, frozen_backbone, leaks_of, train
from tests.engine import Net


def only_cause(step: Callable[[], object]) -> Cause:
    with audited() as said:
        step()
    (verdict,) = said.verdicts
    (cause,) = verdict.causes
    return cause


def distil(teacher: nn.Module, student: nn.Module, batch: Tensor) -> None:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(2):
        with torch.no_grad():
            target = teacher(batch)
        optimizer.zero_grad()
        (student(batch) - target).square().mean().backward()
        optimizer.step()


# A teacher that requires gradients, and that nobody trains.


def test_a_teacher_under_no_grad_leaks_though_its_parameters_require_gradients(
    batch: Tensor,
) -> None:
    class Teacher(Net):
        """The same layers under another name."""

    cause = only_cause(lambda: distil(Teacher(), Net(), batch))
    assert (cause.name, cause.layers) == ("no-grad", ("backbone.bn", "neck"))
    assert "each normalised 2 batches with batch statistics, first at" in cause.why
    assert "no optimizer holds their parameters" in cause.why
    assert "call .eval() on backbone.bn and neck" in cause.fix


def test_a_teacher_in_inference_mode_leaks_too(batch: Tensor) -> None:
    class Teacher(Net):
        """The same layers under another name."""

        def forward(self, batch: Tensor) -> Tensor:
            with torch.inference_mode():
                output = super().forward(batch)
            return output.clone()

    teacher, student = Teacher(), Net()

    def step() -> None:
        target = teacher(batch)
        (student(batch) - target).square().mean().backward()
        torch.optim.SGD(student.parameters(), lr=0.1).step()

    assert only_cause(step).name == "no-grad"


# Statistics of a frozen layer that are written while it is in eval.


def rebound(layer: nn.BatchNorm1d) -> None:
    layer.running_mean, layer.running_var = torch.zeros(3), torch.ones(3)


def rebound_through_the_dict(layer: nn.BatchNorm1d) -> None:
    layer._buffers["running_mean"] = torch.zeros(3)
    layer._buffers["running_var"] = torch.ones(3)


RESETS = [nn.BatchNorm1d.reset_running_stats, rebound, rebound_through_the_dict]


@pytest.mark.parametrize("reset", RESETS)
def test_a_reset_in_eval_is_told(reset: Callable[[nn.BatchNorm1d], None], batch: Tensor) -> None:
    def step() -> None:
        model = frozen_backbone()
        layer = model.backbone.bn
        layer.running_mean.fill_(0.5)
        model.eval()(batch)
        reset(layer)

    cause = only_cause(step)
    assert (cause.name, cause.layers) == ("reset", ("backbone.bn",))
    assert "was frozen and ran in eval at" in cause.why
    assert cause.place is None


def test_a_reset_before_the_layer_runs_in_training_mode_is_told_of_that_layer(
    batch: Tensor,
) -> None:
    model = frozen_backbone()

    def step() -> None:
        model.backbone.bn.running_mean.fill_(0.5)
        model.eval()(batch)
        model.backbone.bn.reset_running_stats()
        train(model, batch)

    with audited() as said:
        step()
    assert said.rules == ("frozen-moved", "frozen-reset")
    assert [cause.name for verdict in said.verdicts for cause in verdict.causes] == [
        "mode-flip",
        "reset",
    ]


def test_other_writes_in_eval_are_told(batch: Tensor) -> None:
    model = frozen_backbone().eval()

    def step() -> None:
        model(batch)
        model.backbone.bn.running_mean.add_(1)

    cause = only_cause(step)
    assert (cause.name, cause.layers) == ("in-place", ("backbone.bn",))
    assert "--bn-trace" in cause.fix


def test_a_write_before_a_load_is_told(batch: Tensor) -> None:
    model = frozen_backbone().eval()
    before = copy.deepcopy(model.state_dict())

    def step() -> None:
        model(batch)
        model.backbone.bn.running_mean.add_(1)
        model.load_state_dict(before)

    assert only_cause(step).name == "in-place"


def test_a_cast_hides_no_leak(batch: Tensor) -> None:
    model = frozen_backbone()

    def step() -> None:
        train(model, batch)
        model.double()

    assert leaks_of(step) == [("backbone.bn",)]


# A model that is trained in eval.


def train_as_it_is(model: nn.Module, batch: Tensor) -> None:
    model(batch).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_a_model_that_is_trained_in_eval_is_told_and_nothing_moved(batch: Tensor) -> None:
    with audited() as said:
        train_as_it_is(Net().eval(), batch)
    (verdict,) = said.verdicts
    assert said.rules == ("stuck-in-eval",)
    assert not verdict.changed_tensors
    (cause,) = verdict.causes
    assert (cause.name, cause.layers) == ("stuck-in-eval", ("backbone.bn", "neck"))
    assert "as all of Net was, while SGD trained Net" in cause.why
    assert cause.place is not None
    assert (cause.place.call, cause.place.function) == ("SGD.step()", "train_as_it_is")


@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_model_that_is_trained_in_eval_is_told(training: bool, batch: Tensor) -> None:
    model = torch.compile(Net().train(training), backend="eager")
    with audited() as said:
        train_as_it_is(model, batch)
    assert said.rules == (() if training else ("stuck-in-eval",))
    for verdict in said.verdicts:
        assert (verdict.model, verdict.changed_layers) == ("Net", ("backbone.bn", "neck"))


def bn_layers_alone_in_eval(batch: Tensor) -> None:
    model = Net().train()
    model.backbone.bn.eval()
    model.neck.eval()
    train_as_it_is(model, batch)


def a_forward_in_eval_before_training(batch: Tensor) -> None:
    model = Net().eval()
    model(batch)
    train(model, batch)


def frozen_layers_in_eval(batch: Tensor) -> None:
    model = Net().eval()
    for layer in (model.backbone, model.neck):
        layer.requires_grad_(False)
    train_as_it_is(model, batch)


def gradients_in_eval_of_a_model_that_no_optimizer_holds(batch: Tensor) -> None:
    Net().eval()(batch).mean().backward()
    train(Net(), batch)


def a_step_in_eval_after_training(batch: Tensor) -> None:
    model = Net()
    train(model, batch)
    train_as_it_is(model.eval(), batch)


def gradients_of_the_head_alone(batch: Tensor) -> None:
    model = Net().eval()
    model(batch)
    model.head(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    "step",
    [
        a_step_in_eval_after_training,
        gradients_of_the_head_alone,
        bn_layers_alone_in_eval,
        a_forward_in_eval_before_training,
        frozen_layers_in_eval,
        gradients_in_eval_of_a_model_that_no_optimizer_holds,
    ],
)
def test_layers_that_are_meant_to_be_in_eval_are_not_stuck(
    step: Callable[[Tensor], None], batch: Tensor
) -> None:
    with audited() as said:
        step(batch)
    assert said.verdicts == ()


# Advice.


def test_a_teacher_that_nobody_put_in_training_mode_is_put_in_eval_when_it_is_built(
    batch: Tensor,
) -> None:
    def distil(*, calls_train: bool) -> str:
        teacher, student = nn.Sequential(nn.BatchNorm1d(2)), nn.Linear(5, 5)
        with audited() as said:
            if calls_train:
                teacher.eval().train()
            with torch.no_grad():
                target = teacher(batch)
            (student(batch) - target).square().mean().backward()
            torch.optim.SGD(student.parameters(), lr=0.1).step()
        (verdict,) = said.verdicts
        assert [cause.name for cause in verdict.causes] == ["no-grad"]
        return verdict.causes[0].fix

    assert distil(calls_train=False) == (
        "call .eval() on 0 when the model is built, and after every train()"
    )
    assert "after every model.train()" in distil(calls_train=True)


# Order and groups.


def test_layers_are_named_in_the_models_order_and_with_all_their_classes() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(self.second(x)[..., None])

    model = Backwards().requires_grad_(False)
    with audited() as said:
        model.train()
        model(torch.randn(4, 3, 5))
    (verdict,) = said.verdicts
    assert verdict.changed_layers == ("first", "second")
    (cause,) = verdict.causes
    assert cause.layers == ("first", "second")
    assert cause.why.startswith("first and second (BatchNorm2d, BatchNorm1d) each normalised")


@pytest.mark.parametrize("thawed", [True, False])
def test_what_was_thawed_and_ran_so_may_be_written_before_it_is_frozen_again(
    batch: Tensor, thawed: bool
) -> None:
    model = frozen_backbone().eval()

    def step() -> None:
        model(batch)
        model.backbone.requires_grad_(thawed)
        model(batch)
        model.backbone.bn.running_mean += 1
        model.backbone.requires_grad_(False)

    assert leaks_of(step) == [("backbone.bn",)] * (not thawed)
