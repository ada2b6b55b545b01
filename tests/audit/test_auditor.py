"""An audit finds the frozen layers whose statistics move, and no others."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.overrides import TorchFunctionMode
from torchvision.ops import FrozenBatchNorm2d

from pytest_bninvariants import bn_updates
from pytest_bninvariants.audit.auditor import Auditor
from pytest_bninvariants.verdict import Verdict
from tests.engine import Net


class Audited:
    """What an audit said."""

    layers: int = -1
    frozen: int = -1
    verdicts: tuple[Verdict, ...] = ()


@contextmanager
def audited() -> Iterator[Audited]:
    auditor, said = Auditor(), Audited()
    auditor.start()
    try:
        yield said
    finally:
        said.verdicts = auditor.stop()
        said.layers, said.frozen = auditor.layers, auditor.frozen


def leaks_of(step: Callable[[], object]) -> list[tuple[str, ...]]:
    """Return the names of the layers that leak in a step, by model."""
    with audited() as said:
        step()
    return [verdict.changed_layers for verdict in said.verdicts]


def frozen_backbone() -> Net:
    model = Net()
    model.backbone.requires_grad_(False)
    return model


def train(model: nn.Module, batch: Tensor) -> None:
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model(batch).square().mean().backward()
    torch.optim.SGD(trained, lr=0.1).step()


# Leaks.


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


def test_the_users_line_is_told_where_nobody_called_train(batch: Tensor) -> None:
    model = frozen_backbone()
    with audited() as said:
        model(batch)
    (cause,) = said.verdicts[0].causes
    assert cause.place is None
    assert "test_auditor.py:" in cause.why
    assert "in training mode since before the test or since it was made" in cause.why


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


# Silence.


def trained_on_purpose(batch: Tensor) -> None:
    train(Net(), batch)


def averaged_to_the_same_values(batch: Tensor) -> None:
    student, teacher = Net(), Net().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    for _ in range(2):
        train(student, batch)
        teacher.train()(batch)
        with torch.no_grad():
            for mean, value in zip(teacher.parameters(), teacher.parameters(), strict=True):
                mean.copy_(value * 1.0)


def averaged_by_loads(batch: Tensor) -> None:
    student, teacher = Net(), Net().requires_grad_(False)
    for _ in range(2):
        F.mse_loss(student(batch), teacher(batch)).backward()
        torch.optim.SGD(student.parameters(), lr=0.1).step()
        other = student.state_dict()
        mine = teacher.state_dict()
        teacher.load_state_dict({name: 0.9 * mine[name] + 0.1 * other[name] for name in mine})


def averaged_by_torch(batch: Tensor) -> None:
    student = Net()
    teacher = AveragedModel(student).requires_grad_(False)
    for _ in range(2):
        train(student, batch)
        teacher(batch)
        teacher.update_parameters(student)


def adapted_on_purpose(batch: Tensor) -> None:
    model = frozen_backbone()
    with bn_updates(model, "backbone", times=2):
        train(model, batch)
        train(model, batch)


def one_parameter_trained(batch: Tensor) -> None:
    model = frozen_backbone()
    model.backbone.bn.bias.requires_grad_(True)
    train(model, batch)


def frozen_and_in_eval(batch: Tensor) -> None:
    model = frozen_backbone().train()
    model.backbone.eval()
    model(batch)


def frozen_after_the_last_training_forward(batch: Tensor) -> None:
    model = Net()
    train(model, batch)
    model.requires_grad_(False).eval()
    model(batch)


def without_momentum(batch: Tensor) -> None:
    model = frozen_backbone()
    model.backbone.bn.momentum = 0.0
    train(model, batch)


def statistics_computed_anew(batch: Tensor) -> None:
    averaged = AveragedModel(Net()).requires_grad_(False)
    update_bn([batch, batch], averaged)


def statistics_put_back(batch: Tensor) -> None:
    model = frozen_backbone()
    before = copy.deepcopy(model.state_dict())
    model(batch)
    model.load_state_dict(before)


def called_functionally(batch: Tensor) -> None:
    model = frozen_backbone()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.func.functional_call(model, state, (batch,))
    parameters = {name: p.detach() for name, p in Net().named_parameters()}
    torch.func.functional_call(Net(), parameters, (batch,))


def a_momentum_encoder(batch: Tensor) -> None:
    student, teacher = Net(), Net().requires_grad_(False)
    for _ in range(2):
        F.mse_loss(student(batch), teacher(batch)).backward()
        torch.optim.SGD(student.parameters(), lr=0.1).step()
        for mine, other in zip(teacher.parameters(), student.parameters(), strict=True):
            mine.data = mine.data * 0.9 + other.data * 0.1


def of_a_detector(_: Tensor) -> None:
    model = torchvision.models.resnet18(num_classes=3, norm_layer=FrozenBatchNorm2d)
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    train(model, torch.randn(2, 3, 32, 32))
    model.load_state_dict(torchvision.models.resnet18(num_classes=3).state_dict(), strict=False)


def frozen_by_timm(_: Tensor) -> None:
    model = timm.create_model("resnet10t", num_classes=3)
    timm.utils.freeze(model, [name for name, _ in model.named_children() if name != "fc"])
    train(model, torch.randn(2, 3, 64, 64))


def on_fake_tensors(batch: Tensor) -> None:
    frozen_backbone().to("meta")(batch.to("meta"))


SILENT = [
    trained_on_purpose,
    averaged_to_the_same_values,
    averaged_by_loads,
    averaged_by_torch,
    adapted_on_purpose,
    one_parameter_trained,
    frozen_and_in_eval,
    frozen_after_the_last_training_forward,
    without_momentum,
    statistics_computed_anew,
    statistics_put_back,
    called_functionally,
    a_momentum_encoder,
    of_a_detector,
    frozen_by_timm,
    on_fake_tensors,
]


@pytest.mark.parametrize("step", SILENT)
def test_what_is_no_leak_is_silent(step: Callable[[Tensor], None], batch: Tensor) -> None:
    assert leaks_of(lambda: step(batch)) == []


@pytest.mark.parametrize("modules", [(), ("neck",)])
def test_updates_that_are_not_expected_of_the_very_layer_are_leaks(
    modules: tuple[str, ...], batch: Tensor
) -> None:
    model = frozen_backbone()

    def step() -> None:
        with bn_updates(model, *modules):
            train(model, batch)

    assert leaks_of(step) == [("backbone.bn",)]


def test_what_moves_after_updates_on_purpose_is_a_leak(batch: Tensor) -> None:
    model = frozen_backbone()

    def step() -> None:
        with bn_updates(model, "backbone"):
            train(model, batch)
        train(model, batch)

    with audited() as said:
        step()
    assert said.verdicts[0].changes[-1].text == "1 -> 2"


def test_layers_that_run_in_eval_are_not_counted(net: Net, batch: Tensor) -> None:
    with audited() as said:
        net(batch)
    assert (said.layers, said.frozen, said.verdicts) == (0, 0, ())


@pytest.mark.parametrize("step", [without_momentum, statistics_put_back, statistics_computed_anew])
def test_frozen_layers_that_do_not_leak_are_counted(
    step: Callable[[Tensor], None], batch: Tensor
) -> None:
    with audited() as said:
        step(batch)
        step(batch)
    assert said.frozen >= 2
    assert said.verdicts == ()


# Cost, and what an audit leaves alone.


def test_ten_thousand_steps_are_kept_as_one(batch: Tensor) -> None:
    auditor, layer = Auditor(), nn.BatchNorm1d(2).requires_grad_(False)
    auditor.start()
    for _ in range(10_000):
        layer(batch)
    seen = list(auditor._seen.values())
    (verdict,) = auditor.stop()
    assert len(seen) == 1
    assert "normalised 10000 batches" in verdict.causes[0].why


def test_what_was_seen_of_models_that_are_gone_is_dropped(batch: Tensor) -> None:
    auditor = Auditor()
    auditor.start()
    for _ in range(200):
        frozen_backbone()(batch)
    seen = len(auditor._seen)
    auditor.stop()
    assert seen < 10


def test_no_model_is_kept_alive(batch: Tensor) -> None:
    with audited():
        model = frozen_backbone()
        model(batch)
        alive = weakref.ref(model)
        del model
        assert alive() is None
