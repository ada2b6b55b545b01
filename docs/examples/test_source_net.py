"""A frozen network gives another output for the same image in every epoch.

`net.requires_grad_(False)` stops gradients. It does not stop BatchNorm: in training mode each
forward updates `running_mean`, `running_var` and `num_batches_tracked`, and eval uses these.

To mend it, call `.eval()` on the BatchNorm layers after every `net.train()`. To keep it mended,
put `@pytest.mark.frozen_bn` on a test that runs your train step.

Take the `xfail` away from the leaking test to read its failure.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pytest_bninvariants import FrozenStateChanged, frozen_bn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


def leaking_epochs(net: Net, batches: Tensor, image: Tensor) -> list[Tensor]:
    outputs = []
    for batch in batches:
        net.train()
        net(batch)
        net.eval()
        outputs.append(net(image))
    return outputs


def mended_epochs(net: Net, batches: Tensor, image: Tensor) -> list[Tensor]:
    outputs = []
    for batch in batches:
        net.train()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        net(batch)
        net.eval()
        outputs.append(net(image))
    return outputs


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


@pytest.fixture
def batches() -> Tensor:
    """Two epochs of one batch each: 8 images of 1x32x32."""
    return torch.randn(2, 8, 1, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.xfail(strict=True, raises=AssertionError)
@pytest.mark.frozen_bn
def test_the_leaking_loop_is_caught(net: Net, batches: Tensor, image: Tensor) -> None:
    leaking_epochs(net, batches, image)


@pytest.mark.frozen_bn
def test_the_mended_loop_passes(net: Net, batches: Tensor, image: Tensor) -> None:
    mended_epochs(net, batches, image)


def test_the_verdict_names_all_six_buffers(net: Net, batches: Tensor, image: Tensor) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(net):
        leaking_epochs(net, batches, image)

    assert caught.value.verdict.changed_layers == ("bn1", "bn2")
    assert caught.value.verdict.changed_tensors == (
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
        "bn2.running_mean",
        "bn2.running_var",
        "bn2.num_batches_tracked",
    )


def test_the_verdict_names_the_call_to_train(net: Net, batches: Tensor, image: Tensor) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(net):
        leaking_epochs(net, batches, image)

    (cause,) = caught.value.verdict.causes
    assert cause.name == "training-mode"
    assert cause.layers == ("bn1", "bn2")
    assert cause.place is not None
    assert Path(cause.place.file) == Path(__file__)
    assert (cause.place.function, cause.place.call) == ("leaking_epochs", "Net.train(True)")


def test_the_leaking_loop_gives_another_output_in_each_epoch(
    net: Net, batches: Tensor, image: Tensor
) -> None:
    first, second = leaking_epochs(net, batches, image)

    assert not torch.allclose(first, second)


def test_the_mended_loop_gives_the_same_output_to_the_last_bit(
    net: Net, batches: Tensor, image: Tensor
) -> None:
    first, second = mended_epochs(net, batches, image)

    assert bits(first) == bits(second)
