"""An audit finds the frozen layers whose statistics move, says why, and leaves no trace."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from pytest_bninvariants.audit.auditor import Auditor
from tests.audit.audits import audited, frozen_backbone, leaks_of, train
from tests.engine import Net


def test_a_frozen_layer_in_training_mode_leaks_and_a_trained_one_beside_it_does_not(
    batch: Tensor,
) -> None:
    model = frozen_backbone()
    with audited() as said:
        train(model, batch)
    assert (said.layers, said.frozen) == (2, 1)
    (verdict,) = said.verdicts
    assert (verdict.model, verdict.layers, verdict.tensors) == ("Net", 1, 3)
    assert verdict.changed_tensors == (
        "backbone.bn.running_mean",
        "backbone.bn.running_var",
        "backbone.bn.num_batches_tracked",
    )
    (cause,) = verdict.causes
    assert (cause.name, cause.layers) == ("training-mode", ("backbone.bn",))
    assert "backbone.bn (BatchNorm1d) normalised 1 batch with batch statistics" in cause.why
    assert cause.place is not None
    assert (cause.place.call, cause.place.function) == ("Net.train(True)", "train")


def test_a_layer_that_was_in_eval_is_said_to_have_been_flipped(batch: Tensor) -> None:
    model = frozen_backbone().eval()
    with audited() as said:
        train(model, batch)
        train(model, batch)
    (cause,) = said.verdicts[0].causes
    assert cause.name == "mode-flip"
    assert "was in eval, then put in training mode, and normalised 2 batches" in cause.why


def test_the_call_before_the_first_batch_that_leaked_is_told_and_no_later_one(
    batch: Tensor,
) -> None:
    model = frozen_backbone().eval()

    def first() -> None:
        model.train()

    def second() -> None:
        model.eval()
        model.train()

    with audited() as said:
        for put_in_training in (first, second):
            put_in_training()
            model(batch)
    (cause,) = said.verdicts[0].causes
    assert cause.place is not None
    assert cause.place.function == "first"


def test_a_copy_of_a_layer_that_shares_its_statistics_has_no_leak_of_its_own(
    batch: Tensor,
) -> None:
    model = frozen_backbone()
    shallow, deep = copy.copy(model.backbone.bn), copy.deepcopy(model.backbone.bn)

    def both(other: nn.Module) -> None:
        model(batch)
        other(torch.ones(4, 3, 5))

    assert leaks_of(lambda: both(shallow)) == [("backbone.bn",)]
    assert leaks_of(lambda: both(deep)) == [("backbone.bn",), ("",)]


def test_the_users_line_is_told_where_nobody_called_train(batch: Tensor) -> None:
    model = frozen_backbone()
    with audited() as said:
        model(batch)
    (cause,) = said.verdicts[0].causes
    assert cause.place is None
    assert "test_auditor.py:" in cause.why
    assert "in training mode since before the test or since it was created" in cause.why


def test_a_verdict_is_plain_data(batch: Tensor) -> None:
    with audited() as said:
        train(frozen_backbone(), batch)
    assert pickle.loads(pickle.dumps(said.verdicts)) == said.verdicts


def test_a_model_that_is_gone_before_the_end_is_judged_too(batch: Tensor) -> None:
    def step() -> None:
        for _ in range(3):
            train(frozen_backbone(), batch)

    assert leaks_of(step) == [("backbone.bn",)]


def test_a_teacher_in_training_mode_leaks_and_its_student_does_not(batch: Tensor) -> None:
    class Teacher(Net):
        """The same layers under another name."""

    teacher, student = Teacher().requires_grad_(False), Net()

    def distil() -> None:
        with torch.no_grad():
            target = teacher(batch)
        F.mse_loss(student(batch), target).backward()

    with audited() as said:
        distil()
    (verdict,) = said.verdicts
    assert (verdict.model, verdict.changed_layers) == ("Teacher", ("backbone.bn", "neck"))


def test_each_layer_of_a_frozen_resnet_leaks() -> None:
    model = torchvision.models.resnet18(num_classes=3).requires_grad_(False)
    model.fc.requires_grad_(True)
    (leaks,) = leaks_of(lambda: train(model, torch.randn(2, 3, 32, 32)))
    assert leaks == tuple(n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))


def test_timms_layers_leak() -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=3).requires_grad_(False)
    model.get_classifier().requires_grad_(True)  # type: ignore[operator]
    (leaks,) = leaks_of(lambda: train(model, torch.randn(2, 3, 64, 64)))
    assert len(leaks) == 34


def test_a_method_other_than_forward_names_the_model_too() -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=3).requires_grad_(False)
    with audited() as said:
        model.forward_features(torch.randn(2, 3, 64, 64))  # type: ignore[operator]
    assert said.verdicts[0].model == "MobileNetV3"
    assert said.verdicts[0].changed_layers[0] == "bn1"


def _compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda m: torch.compile(m, backend="eager"), _compiled_in_place],
)
def test_what_wrappers_put_into_names_is_left_out(
    wrap: Callable[[nn.Module], Any], batch: Tensor
) -> None:
    model = wrap(frozen_backbone())
    with audited() as said:
        model(batch)
    (verdict,) = said.verdicts
    assert (verdict.model, verdict.changed_layers) == ("Net", ("backbone.bn",))


def test_a_layer_without_parameters_is_frozen_as_the_module_around_it_is(batch: Tensor) -> None:
    def build(frozen: bool) -> nn.Module:
        block = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3, affine=False))
        return nn.Sequential(block.requires_grad_(not frozen), nn.Conv1d(3, 1, 1))

    assert leaks_of(lambda: build(True)(batch)) == [("0.1",)]
    assert leaks_of(lambda: build(False)(batch)) == []
    assert leaks_of(lambda: nn.BatchNorm1d(2, affine=False)(batch)) == []


def test_a_forward_of_a_users_own_leaks_if_it_moves_statistics(batch: Tensor) -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 1), requires_grad=False)
            self.register_buffer("running_mean", torch.zeros(2))
            self.register_buffer("running_var", torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.running_mean = 0.9 * self.running_mean + 0.1 * x.mean((0, 2))
            return self.weight * (x - self.running_mean[:, None])

    layer = ByHand()
    assert leaks_of(lambda: layer(batch)) == [("",)]
    assert leaks_of(lambda: layer.eval()(batch)) == []
    layer.train()
    layer.weight.requires_grad_(True)
    assert leaks_of(lambda: layer(batch)) == []


def test_a_layer_that_runs_on_state_of_the_caller_is_not_counted_as_frozen(batch: Tensor) -> None:
    model = Net()
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    with audited() as said:
        torch.func.functional_call(model, state, (batch,))
    assert (said.layers, said.frozen, said.verdicts) == (2, 0, ())


def test_a_layer_that_is_frozen_after_it_was_trained_leaks(batch: Tensor) -> None:
    model = Net()
    with audited() as said:
        train(model, batch)
        train(model, batch)
        model.backbone.requires_grad_(False)
        train(model, batch)
    (verdict,) = said.verdicts
    assert verdict.changed_layers == ("backbone.bn",)
    assert verdict.changes[-1].text == "2 -> 3"


def test_a_users_mode_hears_nothing_of_an_audit(batch: Tensor) -> None:
    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            heard.append(getattr(func, "__self__", func))
            return func(*args, **(kwargs or {}))

    def listen() -> list[object]:
        heard.clear()
        with Mode():
            model(batch)
            model(batch)
        return list(heard)

    heard: list[object] = []
    model = Net()
    bare = listen()
    with audited():
        assert listen() == bare


def test_a_freeze_that_ends_has_leaked_all_the_same(batch: Tensor) -> None:
    model = frozen_backbone()

    def unfreeze() -> None:
        train(model, batch)
        model.backbone.requires_grad_(True)
        train(model, batch)

    assert leaks_of(unfreeze) == [("backbone.bn",)]


def test_of_two_leaks_of_one_layer_the_first_is_told(batch: Tensor) -> None:
    model = frozen_backbone()
    with audited() as said:
        train(model, batch)
        model.backbone.requires_grad_(True)
        train(model, batch)
        model.backbone.requires_grad_(False)
        for _ in range(3):
            train(model, batch)
    (cause,) = said.verdicts[0].causes
    assert "backbone.bn (BatchNorm1d) normalised 1 batch" in cause.why


def test_layers_are_told_in_the_models_order_whatever_runs_first(batch: Tensor) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.BatchNorm1d(2).requires_grad_(False) for _ in range(2))

        def forward(self, batch: Tensor) -> Tensor:
            return self.first(self.second(batch))

    model = Backwards()
    assert leaks_of(lambda: model(batch)) == [("first", "second")]


# Cost, and what an audit leaves alone.


def test_ten_thousand_steps_are_kept_as_one(batch: Tensor) -> None:
    auditor, layer = Auditor(), nn.BatchNorm1d(2).requires_grad_(False)
    auditor.start()
    for _ in range(10_000):
        layer(batch)
    seen = list(auditor._records)
    (found,) = auditor.stop()
    assert len(seen) == 1
    assert "normalised 10000 batches" in found.verdict.causes[0].why


def test_what_was_seen_of_models_that_are_gone_is_dropped(batch: Tensor) -> None:
    auditor = Auditor()
    auditor.start()
    for _ in range(200):
        frozen_backbone()(batch)
    seen = len(auditor._records)
    auditor.stop()
    assert seen < 10


def test_no_model_is_kept_alive(batch: Tensor) -> None:
    with audited():
        model = frozen_backbone()
        model(batch)
        alive = weakref.ref(model)
        del model
        assert alive() is None


def test_a_leak_of_a_model_that_is_freed_is_told_though_another_runs_after_it(
    batch: Tensor,
) -> None:
    def leak() -> None:
        train(frozen_backbone(), batch)

    with audited() as said:
        leak()
        other = Net()
        train(other, batch)
    assert said.rules == ("frozen-moved",)
    assert said.verdicts[0].changed_layers == ("backbone.bn",)
