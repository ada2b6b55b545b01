"""Causes by which statistics move without a BN layer in training mode, and what is none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, frozen_bn


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(3)

    def forward(self, batch: Tensor) -> Tensor:
        return self.bn(batch)


def batch() -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def the_cause(model: nn.Module, step: Callable[[], object], *names: str) -> Any:
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model, *names):
        step()
    (cause,) = caught.value.verdict.causes
    return cause


class Norms(nn.Module):
    """Normalise with a child's statistics, which is not called."""

    def __init__(self, *, training: bool) -> None:
        super().__init__()
        self.bn, self.other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.uses_batch = training

    def forward(self, batch: Tensor) -> Tensor:
        mean, var = self.bn.running_mean, self.bn.running_var.detach()
        return nn.functional.batch_norm(batch, mean, var, training=self.uses_batch)


def test_a_call_of_batch_norm_with_a_layers_statistics() -> None:
    model = Norms(training=True).eval()
    cause = the_cause(model, lambda: model(batch()))
    assert cause.name == "update-in-eval"
    assert cause.layers == ("bn",)
    assert "bn was in eval and did not run" in cause.why
    assert "on 1 batch" in cause.why
    assert (cause.place.function, cause.place.tool) == ("forward", None)
    assert cause.fix.endswith("training=bn.training")


@pytest.mark.parametrize("training", [True, False])
def test_such_a_call_with_other_tensors_that_the_layer_has_for_one_call(training: bool) -> None:
    model = Norms(training=training).eval()
    others = {name: each.clone() for name, each in model.named_buffers()}
    with contextlib.suppress(FrozenStateChanged), frozen_bn(model) as guard:
        torch.func.functional_call(model, others, (batch(),))
    assert [change.text for change in guard.verdict.changes] == (
        ["normalised 1 batch with batch statistics"] if training else []
    )


def test_such_a_call_while_the_layer_is_in_training_mode() -> None:
    model = Norms(training=True).train()
    assert the_cause(model, lambda: model(batch())).name == "training-mode"


def test_a_call_that_uses_stored_statistics_or_its_own_is_none() -> None:
    model = Norms(training=False).eval()
    with frozen_bn(model) as guard:
        model(batch())
        nn.functional.batch_norm(batch(), torch.zeros(3), torch.ones(3), training=True)
    assert guard.verdict.holds
    assert (guard.verdict.layers, guard.verdict.tensors) == (2, 10)


def test_calls_are_heard_no_longer_once_the_guard_ends() -> None:
    before = torch.batch_norm
    with frozen_bn(Norms(training=False).eval()) as guard:
        assert torch.batch_norm is before
        guard.model(batch())
        assert torch.batch_norm is before
    assert torch.batch_norm is before


def test_a_call_of_instance_norm_is_named_as_such() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm1d(3, track_running_stats=True)

        def forward(self, batch: Tensor) -> Tensor:
            mean, var = self.norm.running_mean, self.norm.running_var
            return nn.functional.instance_norm(batch, mean, var, use_input_stats=True)

    model = Fused().eval()
    cause = the_cause(model, lambda: model(torch.randn(2, 3, 4)))
    assert "instance_norm was called" in cause.why
    assert cause.fix.endswith("use_input_stats=norm.training")


class ByHand(nn.Module):
    """Update statistics without a function of torch's, and without asking the mode."""

    def __init__(self, *, rebinds: bool) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))
        self.rebinds = rebinds

    def forward(self, batch: Tensor) -> Tensor:
        if self.rebinds:
            self.running_mean = 0.9 * self.running_mean + 0.1 * batch.mean(0)
        else:
            self.running_mean.mul_(0.9).add_(batch.mean(0), alpha=0.1)
        return batch - self.running_mean


@pytest.mark.parametrize("rebinds", [True, False])
def test_a_forward_that_updates_by_hand_in_eval(rebinds: bool) -> None:
    model = nn.Sequential(ByHand(rebinds=rebinds)).eval()
    cause = the_cause(model, lambda: model(batch()))
    assert cause.name == "update-in-eval"
    assert "0 was in eval and ran 1 batch, with its own forward" in cause.why
    assert cause.fix == "have the forward of 0 update only while self.training"


def without_statistics(model: nn.Module) -> None:
    layer = model[0]
    kept = layer.running_mean, layer.running_var
    layer.running_mean = layer.running_var = None
    model(batch())
    layer.running_mean, layer.running_var = kept


def without_tracking(model: nn.Module) -> None:
    model[0].track_running_stats = False
    model(torch.randn(2, 3, 4))


@pytest.mark.parametrize(
    ("layer", "step"),
    [
        (lambda: nn.BatchNorm1d(3), without_statistics),
        (lambda: nn.InstanceNorm1d(3, track_running_stats=True), without_tracking),
    ],
)
def test_statistics_that_are_taken_away_for_the_step(
    layer: Callable[[], nn.Module], step: Callable[[nn.Module], None]
) -> None:
    model = nn.Sequential(layer()).eval()
    cause = the_cause(model, lambda: step(model))
    assert cause.name == "no-stored-statistics"
    assert "removed during the step" in cause.why


def test_a_flip_that_nobody_saw_is_one_all_the_same() -> None:
    model = Small().eval()

    def step() -> None:
        vars(model.bn)["training"] = True
        model(batch())

    cause = the_cause(model, step)
    assert (cause.name, cause.place) == ("mode-flip", None)


def test_a_scripted_layer_that_is_flipped_in_the_step() -> None:
    model = nn.Sequential(torch.jit.script(nn.BatchNorm1d(3))).eval()
    assert the_cause(model, lambda: model.train()(batch())).name == "mode-flip"


def test_an_eval_that_puts_a_part_in_training_mode_is_named() -> None:
    class Careless(Small):
        def eval(model) -> nn.Module:  # noqa: N805, whatever it is called
            super().eval()
            model.bn.train()
            return model

    model = Careless()
    model.bn.eval()
    cause = the_cause(model, lambda: model.eval()(batch()))
    assert cause.name == "mode-flip"
    assert cause.place.call == "Careless.eval()"


def test_torchs_containers_are_no_tools() -> None:
    model = Small().train()
    cause = the_cause(model, lambda: nn.Sequential.forward(nn.Sequential(model), batch()))
    assert cause.name == "training-mode"
    assert "was run by" not in cause.why


@pytest.mark.parametrize("together", [True, False])
def test_statistics_that_are_another_layers_too(together: bool) -> None:
    student, teacher = Small(), Small()
    teacher.load_state_dict(student.state_dict(), assign=True)
    teacher.eval()
    model = nn.ModuleDict({"student": student, "teacher": teacher}) if together else teacher
    cause = the_cause(model, lambda: student(batch()), *(["teacher"] if together else []))
    assert cause.name == "update-in-eval"
    named = "student.bn" if together else "a BatchNorm1d outside the model"
    assert f"are the same memory as those of {named}" in cause.why


class Fused(nn.Module):
    """Normalise with a child's tensors, as a kernel of one's own does."""

    def __init__(self, prepare: Callable[[Tensor], Tensor] = torch.clone, **options: Any) -> None:
        super().__init__()
        self.bn, self.prepare = nn.BatchNorm1d(3, **options), prepare

    def forward(self, batch: Tensor) -> Tensor:
        bn, batch = self.bn, self.prepare(batch)
        return nn.functional.batch_norm(
            batch, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training, 0.0
        )


def is_told(model: nn.Module, step: Callable[[], object]) -> bool:
    return the_cause(model, step).layers == ("bn",)


def test_a_call_with_a_layers_statistics_after_functional_call_lent_it_others() -> None:
    model = Fused().eval()
    lent = {name: value.clone() for name, value in model.state_dict().items()}

    def step() -> None:
        torch.func.functional_call(model, lent, (batch(),))
        model.train()(batch())

    assert is_told(model, step)


def test_a_call_with_a_layers_statistics_after_compiled_code() -> None:
    model = Fused(torch.compile(lambda x: x * 2, backend="eager")).train()
    model(batch())
    assert is_told(model, lambda: model(batch()))


def test_a_call_with_the_weight_of_a_layer_without_statistics() -> None:
    model = Fused(track_running_stats=False).train()
    assert is_told(model, lambda: model(batch()))


@pytest.mark.parametrize("training", [True, False])
def test_the_forward_of_a_layer_without_statistics_that_is_called_by_its_name(
    *, training: bool
) -> None:
    class Direct(Small):
        def forward(self, batch: Tensor) -> Tensor:
            return self.bn.forward(batch)

    model = Direct()
    model.bn = nn.BatchNorm1d(3, track_running_stats=False)
    assert is_told(model.train(training), lambda: model(batch()))
