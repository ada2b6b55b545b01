"""A torchvision ResNet-50 with a frozen backbone and a new head.

Only `fc` is trained, and only `fc` is in the optimizer. Still `model.train()` puts all 53 BatchNorm
layers in training mode, and one forward moves the running statistics of each.

Either leave all but the head in eval, or build the model with `norm_layer=FrozenBatchNorm2d`, which
has no training mode. `@pytest.mark.frozen(exclude="fc")` holds that nothing but the head moves.

Take the `xfail` away from the leaking test to read its failure.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models import ResNet, resnet50
from torchvision.ops import FrozenBatchNorm2d

from pytest_bninvariants import FrozenStateChanged, frozen

STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def with_new_head(model: ResNet) -> ResNet:
    model.requires_grad_(False)
    model.fc = nn.Linear(model.fc.in_features, 3)
    return model


def step(model: ResNet, images: Tensor) -> None:
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
    F.cross_entropy(model(images), torch.tensor([0, 2])).backward()
    optimizer.step()


def leaking_step(model: ResNet, images: Tensor) -> None:
    model.train()
    step(model, images)


def mended_step(model: ResNet, images: Tensor) -> None:
    model.eval()
    model.fc.train()
    step(model, images)


@pytest.fixture
def model() -> ResNet:
    torch.manual_seed(0)
    return with_new_head(resnet50(weights=None))


@pytest.fixture
def model_of_frozen_layers() -> ResNet:
    torch.manual_seed(0)
    return with_new_head(resnet50(weights=None, norm_layer=FrozenBatchNorm2d))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.xfail(strict=True, raises=AssertionError)
@pytest.mark.frozen(exclude="fc")
def test_train_on_the_whole_model_is_caught(model: ResNet, images: Tensor) -> None:
    leaking_step(model, images)


@pytest.mark.frozen(exclude="fc")
def test_train_on_the_head_alone_passes(model: ResNet, images: Tensor) -> None:
    mended_step(model, images)


@pytest.mark.frozen(exclude="fc")
def test_frozen_batch_norm_needs_no_eval(model_of_frozen_layers: ResNet, images: Tensor) -> None:
    leaking_step(model_of_frozen_layers, images)


def test_the_head_does_train(model: ResNet, images: Tensor) -> None:
    before = model.fc.weight.detach().clone()

    mended_step(model, images)

    assert not torch.equal(model.fc.weight, before)


def test_the_verdict_names_every_batch_norm_layer_and_no_weight(
    model: ResNet, images: Tensor
) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen(model, exclude="fc"):
        leaking_step(model, images)

    verdict = caught.value.verdict
    batch_norms = {n for n, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert len(batch_norms) == 53
    assert set(verdict.changed_layers) == batch_norms
    assert set(verdict.changed_tensors) == {f"{n}.{s}" for n in batch_norms for s in STATISTICS}


def test_the_verdict_names_the_call_to_train(model: ResNet, images: Tensor) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen(model, exclude="fc"):
        leaking_step(model, images)

    (cause,) = caught.value.verdict.causes
    assert cause.name == "training-mode"
    assert cause.place is not None
    assert (cause.place.function, cause.place.call) == ("leaking_step", "ResNet.train(True)")
