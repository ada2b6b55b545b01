"""`trains=` of a frozen guard asks nothing of what the guard freezes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor
from torch.optim import SGD

from pytest_bninvariants import GateError, InvariantBroken, frozen, frozen_bn
from pytest_bninvariants.invariants.guard import Guard
from tests.engine import Net

# what is to train and is in no optimizer is a hazard, and not what is tried here
pytestmark = pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")


def train(net: Net, batch: Tensor, *names: str) -> None:
    """Train the parameters whose names begin so."""
    chosen = [each for name, each in net.named_parameters() if name.startswith(names)]
    optimizer = SGD(chosen, lr=0.1)
    net(batch).square().mean().backward()
    optimizer.step()


def told(broken: InvariantBroken) -> list[str]:
    return [change.name for verdict in broken.verdicts for change in verdict.changes]


def test_frozen_statistics_need_no_update_where_weight_and_bias_train(
    net: Net, batch: Tensor
) -> None:
    with frozen_bn(net, "backbone", parameters=False, trains="backbone"):
        train(net, batch, "backbone")


def test_weight_and_bias_that_do_not_train_are_told_beside_frozen_statistics(
    net: Net, batch: Tensor
) -> None:
    with (
        pytest.raises(InvariantBroken) as caught,
        frozen_bn(net, "backbone", parameters=False, trains="backbone"),
    ):
        train(net, batch, "backbone.conv")
    assert told(caught.value) == ["backbone.bn.weight", "backbone.bn.bias"]


def test_statistics_that_nobody_froze_must_be_updated(net: Net, batch: Tensor) -> None:
    with (
        pytest.raises(InvariantBroken) as caught,
        frozen_bn(net, "backbone", trains=["backbone", "neck"]),
    ):
        train(net, batch, "backbone.conv", "neck")
    assert told(caught.value) == ["neck"]


def test_the_rest_of_a_module_trains_beside_its_frozen_layers(net: Net, batch: Tensor) -> None:
    with frozen_bn(net, trains="backbone"):
        train(net, batch, "backbone.conv")
    with pytest.raises(InvariantBroken) as caught, frozen_bn(net, trains="backbone"):
        train(net, batch, "head")
    assert told(caught.value) == ["backbone.conv.weight", "backbone.conv.bias"]


@pytest.mark.parametrize(
    "make",
    [
        lambda net: frozen(net, "backbone", trains=["backbone.conv", "head"]),
        lambda net: frozen(net, "backbone", trains="backbone.bn.weight"),
        lambda net: frozen_bn(net, trains=["head", "neck"]),
    ],
)
def test_a_name_that_is_frozen_as_a_whole_is_an_error(
    net: Net, make: Callable[[Net], Guard]
) -> None:
    with pytest.raises(GateError, match="names only what the same guard freezes"):
        make(net).start()
