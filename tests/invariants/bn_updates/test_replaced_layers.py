"""A layer that another module replaces inside the block is told as that."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from torch import nn

from pytest_bninvariants import InvariantHazard, bn_updates
from tests.invariants.bn_updates.steps import Net, broken, causes, told, train, values
from tests.watching import watching


def replace(net: Net, new: nn.Module) -> None:
    net.bn = new  # type: ignore[assignment]


def trained(net: Net) -> Net:
    train(net, values())
    return net


@pytest.mark.parametrize(
    ("new", "kind"),
    [
        (lambda: nn.Identity(), "Identity"),
        (lambda: nn.BatchNorm1d(4).eval(), "BatchNorm1d"),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False), "BatchNorm1d"),
    ],
)
def test_a_layer_that_is_replaced_before_the_batch(new: Callable[[], nn.Module], kind: str) -> None:
    net = Net()
    verdict = broken(net, lambda: [replace(net, new()), train(net, values())])
    (cause,) = verdict.causes
    assert (cause.name, cause.layers) == ("replaced", ("bn",))
    assert cause.why == f"bn was BatchNorm1d and is another module now: {kind}"
    assert cause.fix.startswith("replace or convert bn before the guarded step")
    assert not any("compiled" in note for note in verdict.notes)


def test_a_layer_that_is_gone() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    verdict = broken(net, lambda: [net.pop(1), net(values())], "1")
    assert verdict.causes[0].why == "1 was BatchNorm1d and is gone"


def test_a_warm_layer_that_a_new_one_replaces_has_no_update_that_counts() -> None:
    net = Net()
    net(values())
    verdict = broken(net, lambda: [train(net, values(1)), replace(net, nn.BatchNorm1d(4))])
    assert causes(verdict) == ["replaced"]
    assert "bn is another module now: judged by the counter" in verdict.notes


def test_updates_that_go_with_the_layer_are_a_hazard() -> None:
    net, text = Net(), "none of its updates in the model, where it is another module now: Identity"
    with pytest.warns(InvariantHazard, match=text), bn_updates(net):
        replace(trained(net), nn.Identity())


def test_a_copy_that_takes_the_name_and_the_statistics_holds() -> None:
    net = Net()
    with watching(bn_updates(net), layers=1):
        train(net, values())
        replace(net, copy.deepcopy(net.bn))


def test_a_copy_that_is_updated_too_often_is_no_replacement() -> None:
    net = Net()
    verdict = broken(
        net, lambda: [replace(net, copy.deepcopy(net.bn)), train(net, values(0), values(1))]
    )
    assert causes(verdict) == ["extra-forward"]
    assert told(verdict) == [("bn", "2 updates, expected 1")]
