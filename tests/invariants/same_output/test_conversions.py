"""A converted model gives the outputs of the original, or the differences are named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import InvariantBroken, assert_same_output, same_output
from tests.invariants.same_output.steps import message, train_forward


def test_a_copy_gives_the_same_and_a_changed_one_is_said_to_differ(net: Any, batch: Tensor) -> None:
    twin = copy.deepcopy(net)
    assert assert_same_output(net, twin, batch).holds
    twin.neck.eps = 1e-3
    twin.backbone.bn = nn.InstanceNorm1d(3)
    with torch.no_grad():
        twin.head.bias += 1
    with pytest.raises(InvariantBroken) as caught:
        assert_same_output(net, twin, batch)
    told = message(caught)
    assert told.startswith("1 of 1 output differs: output")
    assert "backbone.bn: BatchNorm1d -> InstanceNorm1d" in told
    assert "neck: eps 1e-05 -> 0.001" in told
    assert "6 of 14 tensors differ: backbone.bn.weight gone" in told


def resnet18() -> tuple[nn.Module, Tensor]:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return model, torch.randn(2, 3, 32, 32)


def test_timms_conversion_of_a_resnet_keeps_the_output_up_to_rounding() -> None:
    layers = pytest.importorskip("timm.layers")
    model, images = resnet18()
    with same_output(model, images, rtol=1e-4, atol=1e-4) as guard:
        layers.freeze_batch_norm_2d(model)
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 1)


def test_a_conversion_that_drops_eps_is_told() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    model, images = resnet18()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            frozen_layer = FrozenBatchNorm2d(layer.num_features, eps=0.1)
            frozen_layer.load_state_dict(layer.state_dict())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, frozen_layer)
    original, _ = resnet18()
    with pytest.raises(InvariantBroken) as caught:
        assert_same_output(original, model, images, rtol=1e-4, atol=1e-4)
    told = message(caught)
    assert "bn1, layer1.0.bn1 and 18 more: BatchNorm2d -> FrozenBatchNorm2d" in told
    assert "eps 1e-05 -> 0.1" in told


def test_a_conversion_inside_the_guard_is_not_advised_to_leave_it() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    converted = FrozenBatchNorm2d(4, eps=0.1)
    converted.load_state_dict(model[1].state_dict())
    with pytest.raises(InvariantBroken) as caught, same_output(model, torch.randn(2, 3, 8, 8)):
        model[1] = converted
    (cause,) = caught.value.verdict.causes
    assert cause.name == "replaced"
    assert cause.fix.startswith("if the step is to convert the module, compare what replaced it")


def test_fusing_conv_and_bn_keeps_the_output_up_to_rounding() -> None:
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    model, images = resnet18()
    fused = copy.deepcopy(model).eval()
    fused.conv1, fused.bn1 = fuse_conv_bn_eval(fused.conv1, fused.bn1), nn.Identity()
    assert assert_same_output(model, fused, images, rtol=1e-4, atol=1e-4).layers == 1


def test_transformers_outputs_are_compared_by_name() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    model = transformers.ResNetModel(config)
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(InvariantBroken) as caught, same_output(model, pixel_values=images):
        train_forward(model, images)
    headline, _, cause = str(caught.value).splitlines()[0].partition(" (")
    outputs = "output['last_hidden_state'], output['pooler_output']"
    assert (headline, cause) == (f"2 of 2 outputs changed: {outputs}", "training-mode)")


def test_transformers_frozen_layers_keep_the_output_up_to_rounding() -> None:
    detr = pytest.importorskip("transformers.models.detr.modeling_detr")
    model, images = resnet18()
    with same_output(model, images, rtol=1e-4, atol=1e-4) as guard:
        detr.replace_batch_norm(model)
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 1)
