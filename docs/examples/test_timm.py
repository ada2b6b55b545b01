"""A timm model, whose BatchNorm layers are BatchNormAct2d: BatchNorm and activation in one.

They have a forward of their own, and leak like any BatchNorm: in training mode a forward moves
their running statistics, whatever `requires_grad` says.

Either call `.eval()` on them after every `model.train()`, or let `timm.layers.freeze_batch_norm_2d`
put FrozenBatchNormAct2d in their place, before the optimizer is built.

Take the `xfail` away from the leaking test to read its failure.
"""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pytest_bninvariants import FrozenStateChanged, frozen_bn


def build() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=3)
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    return model


def step(model: nn.Module, images: Tensor) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    F.cross_entropy(model(images), torch.tensor([0, 2])).backward()
    optimizer.step()


def leaking_step(model: nn.Module, images: Tensor) -> None:
    model.train()
    step(model, images)


def mended_step(model: nn.Module, images: Tensor) -> None:
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):  # BatchNormAct2d is one
            layer.eval()
    step(model, images)


@pytest.fixture
def model() -> nn.Module:
    return build()


@pytest.fixture
def model_of_frozen_layers() -> nn.Module:
    return freeze_batch_norm_2d(build())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_the_model_uses_batch_norm_act(model: nn.Module) -> None:
    assert type(model.get_submodule("bn1")) is BatchNormAct2d


@pytest.mark.xfail(strict=True, raises=AssertionError)
@pytest.mark.frozen_bn
def test_train_on_the_whole_model_is_caught(model: nn.Module, images: Tensor) -> None:
    leaking_step(model, images)


@pytest.mark.frozen_bn
def test_eval_of_the_batch_norm_layers_passes(model: nn.Module, images: Tensor) -> None:
    mended_step(model, images)


@pytest.mark.frozen_bn
def test_frozen_batch_norm_act_needs_no_eval(
    model_of_frozen_layers: nn.Module, images: Tensor
) -> None:
    assert type(model_of_frozen_layers.get_submodule("bn1")) is FrozenBatchNormAct2d
    leaking_step(model_of_frozen_layers, images)


def test_the_verdict_names_every_batch_norm_layer(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        leaking_step(model, images)

    verdict = caught.value.verdict
    batch_norms = [n for n, layer in model.named_modules() if isinstance(layer, BatchNormAct2d)]
    assert len(batch_norms) == 34
    assert verdict.changed_layers == tuple(batch_norms)
    assert verdict.changed_tensors[:3] == (
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
    )


def test_the_verdict_names_the_call_to_train(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        leaking_step(model, images)

    (cause,) = caught.value.verdict.causes
    assert cause.name == "training-mode"
    assert cause.place is not None
    assert (cause.place.function, cause.place.call) == ("leaking_step", "MobileNetV3.train(True)")
