"""Layers of users' own: normalised for by a call, or made of plain operators."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_bninvariants import InvariantHazard, bn_updates
from tests.invariants.bn_updates.steps import UNCHECKED, broken, causes, told, train, values
from tests.watching import watching


class Fused(nn.Module):
    """A module that normalises with the statistics of a layer in it, which it does not call."""

    def __init__(self, how: str, momentum: float | None = 0.3) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=momentum)
        self.how = how

    def forward(self, x: Tensor, momentum: float = 0.3) -> Tensor:
        x, bn = self.linear(x), self.bn
        if self.how == "forward":
            return bn.forward(x)
        if self.how == "counts before" and self.training:
            bn.num_batches_tracked += 1
        y = F.batch_norm(
            x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training, momentum
        )
        if self.how == "counts after" and self.training:
            bn.num_batches_tracked += 1
        return y


@pytest.mark.parametrize("how", ["forward", "counts before", "counts after"])
def test_a_layer_that_is_normalised_for_without_a_call_of_its_own_is_updated(how: str) -> None:
    model = Fused(how)
    with bn_updates(model, times=3) as guard:
        train(model, *map(values, range(3)))
    assert guard.verdict is not None
    assert (guard.verdict.hazards, guard.verdict.notes) == ((), ())
    verdict = broken(model, lambda: train(model, values(3), values(4)))
    assert told(verdict) == [("bn", "2 updates, expected 1")]
    assert verdict.causes[0].place is not None
    assert verdict.causes[0].place.function == "train"
    saved = copy.deepcopy(model.state_dict())

    def undo() -> None:
        with watching(bn_updates(model), layers=1):
            model(values(5))
            model.load_state_dict(saved)

    with pytest.warns(InvariantHazard, match="were put back"):
        undo()


def test_a_call_with_a_layers_statistics_is_judged_by_the_layers_momentum() -> None:
    model = Fused("counts before")
    verdict = broken(model, lambda: model(values(), momentum=0.7))
    assert causes(verdict) == ["wrong-update"]
    assert "as if momentum were 0.7" in verdict.causes[0].why
    model = Fused("forward", momentum=None)
    with bn_updates(model, times=2) as guard:
        model(values(0))
        model(values(1))
    assert guard.verdict is not None
    assert "bn were not checked against the reference" in guard.verdict.notes[0]


def test_a_call_is_that_of_the_layer_whose_mean_and_variance_it_gets() -> None:
    model = Fused("counts before")
    model.other = nn.BatchNorm1d(4)
    model.other.running_mean = model.bn.running_mean
    with watching(bn_updates(model, "bn"), layers=1):
        model(values())
    verdict = broken(model, lambda: model(values()), "other")
    assert told(verdict) == [("other", "0 updates, expected 1; written to outside its updates")]
    assert causes(verdict) == ["not-run", "in-place"]


def test_a_call_that_leaves_the_counter_alone_is_a_hazard_and_one_in_eval_no_update() -> None:
    model = Fused("does not count")
    with (
        pytest.warns(InvariantHazard, match="bn: .* does not count its updates"),
        bn_updates(model),
    ):
        model(values())
    with watching(bn_updates(model), layers=1):
        model.bn(model.linear(values()))
        model(values(), momentum=0.0)
    assert causes(broken(model.eval(), lambda: model(values()))) == ["stuck-in-eval"]
    model.train().bn.eval()
    verdict = broken(model, lambda: model(values()))
    assert "1 update in eval" in told(verdict)[0][1]


class Plain(nn.Module):
    """A norm layer that is none of torch's, nor has a momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training)


class OfItsOwn(nn.Module):
    """A norm layer of plain operators, with a way of its own to update."""

    def __init__(self, way: str = "", momentum: float | None = 0.1) -> None:
        super().__init__()
        self.way = way
        if way != "without momentum":
            self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean(0), x.var(0)
        if self.training:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.update(x)
        return (x - mean) / (var + 1e-5).sqrt()

    def update(self, x: Tensor) -> None:
        ghosts = x.chunk(2) if self.way == "ghosts" else (x,)
        m = 0.9 if self.way == "swapped" else 0.1
        for each in ghosts:
            self.running_mean.lerp_(each.mean(0), m)
            self.running_var.lerp_(each.var(0, unbiased=self.way != "biased"), m)
        if self.way == "garbage":
            self.running_mean.fill_(99.0)


def test_a_layer_of_plain_operators_that_updates_as_batch_norm_does_is_silent() -> None:
    model = OfItsOwn()
    with bn_updates(model, times=2) as guard:
        model(values(0))
        model(values(1))
    assert guard.verdict is not None
    assert (guard.verdict.hazards, guard.verdict.notes) == ((), ())
    verdict = broken(model, lambda: (model(values(0)), model(values(0))), times=2)
    assert told(verdict) == [("", "1 update with a batch that it had already used")]


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("biased", "running_var is with the biased variance"),
        ("swapped", "running_mean is as if momentum were 0.9"),
        ("garbage", "running_mean: 3 of 3 values, 99 at"),
        ("ghosts", "differ from BatchNorm's, perhaps on purpose: running_mean: 3 of 3"),
        ("without momentum", "it has a custom forward: its updates could not be checked"),
    ],
)
def test_a_layer_of_plain_operators_that_updates_otherwise_is_a_hazard(way: str, text: str) -> None:
    model = OfItsOwn(way)
    with pytest.warns(InvariantHazard, match=text), bn_updates(model):
        model(values())


def test_a_layer_that_normalises_its_batch_in_parts_is_not_judged_by_one_of_them() -> None:
    class Ghosts(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super(Ghosts, self).forward(each) for each in x.chunk(3)])

    model = Ghosts(3)
    with bn_updates(model) as guard:
        model(values(shape=(9, 3)))
    assert guard.verdict is not None
    assert guard.verdict.notes == (UNCHECKED,)


def test_a_layer_without_a_momentum_is_not_taken_for_one_that_averages_all_batches() -> None:
    model = Plain()
    for seed in range(2):
        with pytest.warns(InvariantHazard, match="does not count"), bn_updates(model) as guard:
            model(values(seed))
        assert guard.verdict is not None
        assert "were not checked against the reference" in guard.verdict.notes[0]
