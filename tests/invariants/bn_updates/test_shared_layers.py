"""A layer that one forward of the model calls several times."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import bn_updates
from tests.invariants.bn_updates.steps import Net, broken, causes, train, values
from tests.watching import watching


class Pyramid(nn.Module):
    """A head with a BN layer, for each level of one forward."""

    def __init__(self, *, separate: bool = False) -> None:
        super().__init__()
        self.stem = nn.BatchNorm1d(3)
        self.separate = separate
        self.heads = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(3 if separate else 1))

    def forward(self, batch: Tensor) -> Tensor:
        level, total = self.stem(batch), torch.zeros(())
        for number in range(3):
            level = level * 2 + 1
            total = total + self.heads[number if self.separate else 0](level).square().mean()
        return total


class Pipeline(nn.Module):
    """A module whose training_step calls the model, as Lightning's does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Pyramid()

    def training_step(self, batch: Tensor) -> Tensor:
        return self.net(batch)


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.model, self.times = model, times

    def forward(self, *batches: Tensor) -> Tensor:
        return sum((self.model(batch) for batch in batches), torch.zeros(()))


PYRAMID, PIPELINE = Pyramid(), Pipeline()


@pytest.mark.parametrize(
    ("model", "run"),
    [
        (PYRAMID, PYRAMID),
        (PYRAMID, Wrapper(PYRAMID)),
        (PIPELINE, PIPELINE.training_step),
    ],
    ids=["called", "inside a wrapper", "part of what is guarded"],
)
def test_a_layer_called_several_times_within_one_forward_is_told_as_that(
    model: nn.Module, run: Callable[[Tensor], Tensor]
) -> None:
    for batches in (1, 2):
        verdict = broken(model, lambda count=batches: [run(values(n)) for n in range(count)])
        cause = verdict.causes[0]
        assert cause.name == "extra-forward"
        assert "updated 3 times within one forward of the model" in cause.why
        assert "give each call a layer of its own" in cause.fix
        assert "times=" not in cause.fix
        assert "momentum" not in cause.why + cause.fix


def test_layers_of_their_own_hold() -> None:
    model = Pyramid(separate=True)
    with watching(bn_updates(model), layers=4):
        train(model, values())


def test_a_wrapper_that_calls_the_model_several_times_accumulates() -> None:
    model = Net()
    verdict = broken(model, lambda: Wrapper(model)(values(0), values(1)).sum().backward())
    assert causes(verdict) == ["extra-forward"]
    assert "pass times=2" in verdict.causes[0].fix
    assert "updated in 2 forwards of the step" in verdict.causes[0].why


def test_a_shared_layer_and_others_have_causes_of_their_own() -> None:
    model = Pyramid()
    head, stem = broken(model, lambda: [model(values(seed)) for seed in range(2)]).causes
    assert (stem.layers, head.layers) == (("stem",), ("heads.0",))
    assert "updated in 2 forwards of the step" in stem.why
    assert "pass times=2" in stem.fix
