"""Layers and models of torchvision and timm."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.ops import FrozenBatchNorm2d

from pytest_bninvariants import FrozenStateChanged, frozen, frozen_bn
from pytest_bninvariants.selection.bn_layers import is_bn_layer
from tests.watching import watching


def image() -> Tensor:
    return torch.randn(2, 4, 5, 5)


@pytest.mark.parametrize(
    "layer", [FrozenBatchNorm2d(4), BatchNormAct2d(4), FrozenBatchNormAct2d(4)], ids=repr
)
def test_layers_of_other_libraries_are_bn_layers(layer: nn.Module) -> None:
    assert is_bn_layer(layer)


@pytest.mark.parametrize("layer", [FrozenBatchNorm2d, FrozenBatchNormAct2d])
def test_frozen_batch_norms_are_fine_in_training_mode(layer: Callable[[int], nn.Module]) -> None:
    model = nn.Sequential(layer(4)).train()
    model[0].running_mean.fill_(0.5)
    with frozen_bn(model) as guard:
        model(image())
    assert guard.verdict is not None
    assert guard.verdict.hazards == ()


def test_a_frozen_batch_norm_that_is_written_is_found() -> None:
    model = nn.Sequential(FrozenBatchNorm2d(4)).train()
    with pytest.raises(FrozenStateChanged, match="1 of 1 frozen BN layer changed: 0"):
        with_write(model)


def with_write(model: Any) -> None:
    with frozen_bn(model):
        model(image())
        model[0].running_var.mul_(2)


def test_timms_batch_norm_is_judged_by_what_it_does() -> None:
    model = nn.Sequential(BatchNormAct2d(4, act_layer=nn.ReLU)).eval()
    with watching(frozen_bn(model), layers=1, tensors=5):
        model(image())
    with pytest.raises(FrozenStateChanged, match="training-mode"), frozen_bn(model.train()):
        model(image())


def test_timms_batch_norm_without_momentum_is_found_by_what_it_normalised_with() -> None:
    model = nn.Sequential(BatchNormAct2d(4, momentum=0.0)).train()
    guard = frozen_bn(model, exclude="*.num_batches_tracked")
    with pytest.raises(FrozenStateChanged) as caught, guard:
        model(image())
    assert [change.kind for change in caught.value.verdict.changes] == ["batch-statistics"]


@pytest.mark.parametrize(
    "convert", [nn.SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm]
)
@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
def test_converting_a_resnet_inside_the_step_is_no_violation(
    convert: Callable[[Any], Any],
) -> None:
    model = resnet18().eval()
    with frozen(model) as guard:
        convert(model)
        model(torch.randn(1, 3, 32, 32))
    assert guard.verdict is not None
    assert "type changed from BatchNorm2d to SyncBatchNorm" in {
        h.text for h in guard.verdict.hazards
    }


def trained(guarded: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = resnet18(num_classes=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    around: Any = contextlib.ExitStack()
    if guarded:
        around.enter_context(contextlib.suppress(FrozenStateChanged))
        around.enter_context(frozen(model))
    with around:
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(2, 3, 33, 33)), torch.tensor([0, 1])).backward()
            optimizer.step()
    found = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    found |= {f"{name} grad": p.grad.clone() for name, p in model.named_parameters()}
    for number, state in optimizer.state_dict()["state"].items():
        found[f"momentum {number}"] = state["momentum_buffer"]
    return found | {"rng": torch.get_rng_state()}


def test_training_a_resnet_is_bit_identical() -> None:
    guarded, bare = trained(guarded=True), trained(guarded=False)
    assert guarded.keys() == bare.keys()
    different = [name for name, value in guarded.items() if not torch.equal(value, bare[name])]
    assert different == []


@pytest.fixture(scope="module")
def text() -> str:
    """What is said of a whole resnet50 that drifted."""
    model = resnet50().requires_grad_(False).train()
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        model(torch.randn(2, 3, 32, 32))
    return str(caught.value)


def test_a_resnet50_that_drifted_fits_on_one_screen(text: str) -> None:
    lines = text.splitlines()
    assert (
        lines[0]
        == "53 of 53 frozen BN layers changed: bn1, layer1.0.bn1 and 51 more (training-mode)"
    )
    told = [line for line in lines[1:] if not line.startswith("more https:")]
    assert len(told) < len(lines) - 1
    assert len(told) < 40
    assert all(len(line) <= 76 for line in told)


@pytest.mark.parametrize(
    "name", ["bn1.running_mean", "layer1.0.bn1.running_mean", "layer4.0.bn1.num_batches_tracked"]
)
def test_each_group_of_a_resnet50_gives_its_first_name_whole(text: str, name: str) -> None:
    assert f"  {name}" in text
