"""Why a layer was updated too often, too seldom or in eval."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

from pytest_bninvariants import bn_updates
from tests.invariants.bn_updates.steps import Net, broken, causes, told, train, values
from tests.watching import watching


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_in_resnet18_is_told(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = resnet18(num_classes=2)

        def forward(self, x: Tensor) -> Tensor:
            net = self.net
            x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
            for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
                x = checkpoint(layer, x, use_reentrant=reentrant)
            return net.fc(x.mean((2, 3)))

    model = Checkpointed()
    images = values(shape=(2, 3, 64, 64))
    verdict = broken(model, lambda: train(model, images))
    assert (verdict.layers, len(verdict.changes)) == (20, 19)
    assert told(verdict)[0][1] == "2 updates, expected 1; 1 update in backward"
    assert causes(verdict) == ["recomputation"]
    with watching(bn_updates(model, "net.bn1"), layers=1):
        train(model, images)
    assert "in backward" in told(broken(model, lambda: train(model, images), times=2))[1][1]


def test_a_layer_that_is_stuck_in_eval_is_told_with_the_line() -> None:
    model = Net()

    def validate_and_train() -> None:
        model.eval()
        train(model, values())

    (cause,) = broken(model, validate_and_train).causes
    assert cause.name == "stuck-in-eval"
    assert cause.place is not None
    assert (cause.place.call, cause.place.function) == ("Net.eval()", "validate_and_train")


def test_an_update_in_eval_is_a_violation() -> None:
    class Always(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, training=True)

    model = Always(3).eval()
    verdict = broken(model, lambda: model(values()))
    assert told(verdict) == [("", "1 update in eval")]
    assert causes(verdict) == ["update-in-eval"]


def test_momentum_zero_and_functional_call_leave_no_update() -> None:
    still = nn.BatchNorm1d(3, momentum=0.0)
    assert causes(broken(still, lambda: still(values()))) == ["momentum-zero"]
    model = nn.BatchNorm1d(3)

    def call() -> dict[str, Tensor]:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        torch.func.functional_call(model, state, (values(),))
        return state

    assert causes(broken(model, call)) == ["updated-elsewhere"]
    with watching(bn_updates(model), layers=1):
        model.load_state_dict(call())


def test_instance_norm_takes_a_momentum_of_none_for_zero() -> None:
    def built(momentum: float | None) -> nn.Module:
        return nn.InstanceNorm1d(3, momentum=momentum, track_running_stats=True)

    batch = torch.randn(4, 3, 5)
    still = built(None)
    verdict = broken(still, lambda: still(batch))
    assert causes(verdict) == ["momentum-zero"]
    assert verdict.causes[0].fix.startswith("use a momentum above 0")
    moving = built(0.1)
    with watching(bn_updates(moving), layers=1):
        moving(batch)


def test_a_pass_for_swas_statistics_with_momentum_zero_is_told() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).train()

    def take_statistics(momentum: float | None) -> None:
        model[0].reset_running_stats()
        model[0].momentum = momentum
        for seed in range(4):
            model(values(seed))

    verdict = broken(model, lambda: take_statistics(0.0), times=4)
    assert told(verdict) == [("0", "0 updates, 4 forwards without, expected 4")]
    assert causes(verdict) == ["momentum-zero"]
    with watching(bn_updates(model, times=4), layers=1):
        take_statistics(None)
