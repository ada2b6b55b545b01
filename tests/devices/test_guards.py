"""Guards on whatever device `--bn-device` names; without it, on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_bninvariants import (
    FrozenStateChanged,
    InvariantBroken,
    batch_invariant,
    bn_updates,
    frozen,
    frozen_bn,
    in_sync,
    same_output,
    trains,
)


@pytest.fixture
def net(bn_device: torch.device) -> nn.Sequential:
    """A network with two BN layers, for inputs (N, 5)."""
    torch.manual_seed(0)
    first = (nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).to(bn_device)


@pytest.fixture
def batch(bn_device: torch.device) -> Tensor:
    return torch.randn(8, 5).to(bn_device)


@pytest.fixture
def step(net: nn.Sequential, batch: Tensor) -> Callable[[], None]:
    trained = [each for each in net.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.01)

    def run() -> None:
        optimizer.zero_grad()
        labels = (torch.arange(8) % 3).to(batch.device)
        functional.cross_entropy(net(batch), labels).backward()
        optimizer.step()

    return run


@pytest.fixture
def frozen_layers(net: nn.Sequential) -> None:
    for layer in net:
        if isinstance(layer, nn.BatchNorm1d):
            layer.eval().requires_grad_(False)


@pytest.fixture
def users_default_device(bn_device: torch.device) -> Iterator[None]:
    torch.set_default_device(bn_device)
    yield
    torch.set_default_device(None)


@pytest.mark.usefixtures("frozen_layers")
def test_frozen_layers_that_stay_hold(net: nn.Sequential, step: Callable[[], None]) -> None:
    with frozen_bn(net) as guard, trains(net):
        step()
    assert guard.verdict is not None
    assert guard.verdict.holds


def test_a_layer_in_training_mode_is_told(net: nn.Sequential, step: Callable[[], None]) -> None:
    with pytest.raises(FrozenStateChanged, match="training-mode"), frozen_bn(net):
        step()


def test_an_optimizer_that_holds_frozen_parameters_is_told(
    net: nn.Sequential, step: Callable[[], None]
) -> None:
    with pytest.raises(FrozenStateChanged, match="gradient-step"), frozen(net):
        step()


@pytest.mark.parametrize("value", [float("nan"), -0.0])
def test_a_write_of_one_value_is_told(net: nn.Sequential, batch: Tensor, value: float) -> None:
    net.eval()

    def step() -> None:
        net(batch)
        net[1].running_mean.data[3] = value

    with pytest.raises(FrozenStateChanged, match=r"1\.running_mean"), frozen(net):
        step()


def test_a_large_tensor_is_told_in_one_value(bn_device: torch.device) -> None:
    net = nn.Linear(1500, 1000).to(bn_device)

    def step() -> None:
        net(torch.ones(1, 1500).to(bn_device))
        net.weight.data[700, 3] += 1

    with pytest.raises(FrozenStateChanged, match="weight"), frozen(net):
        step()


def test_training_holds(net: nn.Sequential, step: Callable[[], None]) -> None:
    with bn_updates(net) as updates, trains(net) as training:
        step()
    assert updates.verdict is not None
    assert training.verdict is not None
    assert updates.verdict.layers == 2


def test_a_second_forward_is_told(net: nn.Sequential, batch: Tensor) -> None:
    def step() -> None:
        net(batch)
        net(batch + 1)

    with pytest.raises(InvariantBroken, match="2 updates"), bn_updates(net):
        step()


def test_a_wrong_update_is_told(bn_device: torch.device) -> None:
    class BiasedVariance(nn.BatchNorm1d):
        """It keeps the variance that it normalises with, which is biased."""

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.running_var.sub_(x.var(0) * 0.1).add_(x.var(0, unbiased=False) * 0.1)
            return y

    net = BiasedVariance(4).to(bn_device)
    with pytest.raises(InvariantBroken, match="running_var"), bn_updates(net):
        net(torch.randn(8, 4).to(bn_device))


def test_what_no_optimizer_holds_does_not_train(net: nn.Sequential, batch: Tensor) -> None:
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)

    def step() -> None:
        net(batch).square().sum().backward()
        optimizer.step()

    with pytest.raises(InvariantBroken, match="not-in-optimizer"), trains(net):
        step()


def test_outputs_that_change_are_told(net: nn.Sequential, batch: Tensor) -> None:
    net.eval()
    with same_output(net, batch):
        net(batch)

    def write() -> None:
        net[0].weight.data.add_(1)

    with pytest.raises(InvariantBroken), same_output(net, batch):
        write()


def test_models_that_differ_are_out_of_sync(net: nn.Sequential, batch: Tensor) -> None:
    twin = copy.deepcopy(net)
    assert in_sync(net, twin).holds
    net(batch)
    with pytest.raises(InvariantBroken):
        in_sync(net, twin)


def test_batch_statistics_mix_samples(net: nn.Sequential, batch: Tensor) -> None:
    tolerance = {"rtol": 1e-3, "atol": 1e-5}
    assert batch_invariant(net, batch, **tolerance).holds
    mixing = nn.BatchNorm1d(5, track_running_stats=False).to(batch.device)
    with pytest.raises(InvariantBroken, match="no-stored-statistics"):
        batch_invariant(mixing, batch, **tolerance)


@pytest.mark.usefixtures("users_default_device", "frozen_layers")
def test_a_default_device_changes_nothing(net: nn.Sequential, step: Callable[[], None]) -> None:
    with frozen_bn(net), trains(net):
        step()
