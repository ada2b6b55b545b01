"""What an audit must not report, and what hides nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel, update_bn
from torchvision.ops import FrozenBatchNorm2d

from pytest_bninvariants import bn_updates
from tests.audit.audits import audited, frozen_backbone, leaks_of, train
from tests.engine import Net


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


def a_generator_whose_optimizer_waits(batch: Tensor) -> None:
    generator, discriminator = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)), Net()
    torch.optim.SGD(generator.parameters(), lr=0.1)
    with torch.no_grad():
        drawn = generator(batch)
    train(discriminator, drawn)


def a_generator_that_is_trained_later(batch: Tensor) -> None:
    generator, discriminator = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)), Net()
    with torch.no_grad():
        drawn = generator(batch)
    train(discriminator, drawn)
    discriminator(generator(batch)).mean().backward()


def run_without_gradients_beside_no_training(batch: Tensor) -> None:
    train(Net(), batch)
    with torch.no_grad():
        Net()(batch)


def in_eval_and_loaded(batch: Tensor) -> None:
    model, other = frozen_backbone().eval(), Net()
    other(batch)
    model(batch)
    model.backbone.bn.load_state_dict(other.backbone.bn.state_dict())
    model(batch)


def in_eval_and_averaged_with_its_buffers(batch: Tensor) -> None:
    student = Net()
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    teacher(batch)
    train(student, batch)
    with torch.no_grad():
        pairs = zip(teacher.state_dict().values(), student.state_dict().values(), strict=True)
        for slow, fast in pairs:
            slow.copy_(fast)
    teacher(batch)


def in_eval_thawed_and_reset(batch: Tensor) -> None:
    model = frozen_backbone().eval()
    model.backbone.bn.running_mean.fill_(0.5)  # type: ignore[union-attr, operator]
    model(batch)
    model.requires_grad_(True)
    model.backbone.bn.reset_running_stats()
    train(model, batch)


def in_eval_and_cast(batch: Tensor) -> None:
    frozen_backbone().eval()(batch)
    model = frozen_backbone().eval()
    model(batch)
    model.double()(batch.double())


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
    a_generator_whose_optimizer_waits,
    a_generator_that_is_trained_later,
    run_without_gradients_beside_no_training,
    in_eval_and_loaded,
    in_eval_and_averaged_with_its_buffers,
    in_eval_thawed_and_reset,
    in_eval_and_cast,
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
