"""A layer that normalises inside a model's forward and is not a submodule of it is a hazard."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import (
    InvariantBroken,
    InvariantHazard,
    batch_invariant,
    bn_updates,
    frozen,
    frozen_bn,
    trains,
)

BATCH = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + 2


class Holder(nn.Module):
    """A registered BN layer, and another one that is kept in some other way."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(3)
        vars(self)["kept"] = kept

    def other(self) -> nn.Module:
        kept = self.kept
        while not isinstance(kept, nn.Module):
            kept = next(iter(kept.values())) if isinstance(kept, dict) else next(iter(kept))
        return kept

    def forward(self, x: Tensor) -> Tensor:
        return self.other()(self.first(x))


KEPT = [
    (lambda layer: [layer], "kept[0]", "nn.ModuleList"),
    (lambda layer: ((layer,),), "kept[0][0]", "nn.ModuleList"),
    (lambda layer: {"a": layer}, "kept['a']", "nn.ModuleDict"),
    (lambda layer: [nn.Sequential(layer)], "kept[0].0", "nn.ModuleList"),
    (lambda layer: layer, "kept", "register it"),
]


@pytest.mark.parametrize(("keep", "name", "fix"), KEPT)
@pytest.mark.parametrize("guard", [frozen, frozen_bn])
def test_a_frozen_model_runs_a_layer_that_eval_does_not_reach(
    guard: Any, keep: Any, name: str, fix: str
) -> None:
    net = nn.Sequential(Holder(keep(nn.BatchNorm1d(3)))).eval()
    with pytest.warns(InvariantHazard) as caught, guard(net):
        net(BATCH)
    said = str(caught[0].message)
    assert f"0.{name}: normalised with batch statistics and is not a submodule" in said
    assert fix in said


def test_a_layer_that_nothing_keeps_is_told_by_its_class() -> None:
    class Making(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.BatchNorm1d(3)(self.first(x))

    net = Making().eval()
    with pytest.warns(InvariantHazard, match="a BatchNorm1d: normalised"), frozen(net):
        net(BATCH)


@pytest.mark.parametrize("guard", [trains, bn_updates])
def test_what_trains_a_model_does_not_reach_it(guard: Any) -> None:
    net = Holder([nn.BatchNorm1d(3)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def train_step() -> None:
        (net(BATCH) * BATCH).square().mean().backward()
        optimizer.step()

    with pytest.warns(InvariantHazard, match=r"kept\[0\]: .*nn.ModuleList"), guard(net):
        train_step()


@pytest.mark.filterwarnings("error")
def test_a_teacher_in_eval_may_be_hidden_on_purpose() -> None:
    net = Holder([nn.BatchNorm1d(3).eval()]).eval()
    net.first.running_mean.fill_(0.5)  # type: ignore[union-attr]
    with frozen(net):
        net(BATCH)


@pytest.mark.filterwarnings("error")
def test_another_model_beside_it_is_none_of_its_layers() -> None:
    net, other = nn.Sequential(nn.BatchNorm1d(3)).eval(), nn.BatchNorm1d(3)
    net[0].running_mean.fill_(0.5)  # type: ignore[union-attr, operator]
    with frozen(net):
        other(net(BATCH))


@pytest.mark.filterwarnings("error")
def test_a_layer_that_the_step_registers_is_a_submodule() -> None:
    net = Holder([nn.BatchNorm1d(3)])
    with bn_updates(net, "first"):
        net.other().eval()
        net.new, vars(net)["kept"] = nn.BatchNorm1d(3), None
        vars(net)["kept"] = net.new
        net(BATCH)


@pytest.mark.parametrize(("keep", "name", "fix"), KEPT)
def test_it_is_named_as_what_mixes_samples(keep: Any, name: str, fix: str) -> None:
    net = Holder(keep(nn.BatchNorm1d(3))).eval()
    with pytest.raises(InvariantBroken) as broken:
        batch_invariant(net, BATCH, rtol=1e-4, atol=1e-5)
    (cause,) = broken.value.verdict.causes
    assert (cause.name, cause.layers) == ("training-mode", (name,))
    assert "the model's eval() does not reach" in cause.why
    assert fix in cause.fix


def test_a_registered_layer_that_eval_does_not_reach_has_the_old_advice() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def train(self, mode: bool = True) -> Stubborn:
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    with pytest.raises(InvariantBroken) as broken:
        batch_invariant(Stubborn(), BATCH, rtol=1e-4, atol=1e-5)
    (cause,) = broken.value.verdict.causes
    assert "an overridden train() must pass the mode on" in cause.fix


@pytest.mark.parametrize("affine", [False, True])
def test_a_copy_that_holds_a_layers_own_state_is_no_hazard(*, affine: bool) -> None:
    twin, model = nn.BatchNorm1d(3, affine=affine), Holder(())
    vars(model)["kept"] = twin
    model.first = nn.BatchNorm1d(3, affine=affine)
    twin._buffers = model.first._buffers  # as in the graphs that older versions of dynamo make
    with warnings.catch_warnings():
        warnings.simplefilter("error", InvariantHazard)
        with frozen_bn(nn.ModuleList([model, nn.BatchNorm1d(3)]), "1", allow_batch_stats=True):
            model(BATCH)


def test_a_part_that_a_compiled_model_leaves_out_brings_no_hazard_of_the_rest() -> None:
    model = nn.ModuleDict({"used": nn.BatchNorm1d(3), "unused": nn.BatchNorm1d(3)})
    run = torch.compile(lambda batch: model["used"](batch), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", InvariantHazard)
        with frozen_bn(model, "unused"):
            run(BATCH)


def test_a_layer_that_shares_its_weight_and_not_its_statistics_is_a_hazard() -> None:
    twin = nn.BatchNorm1d(3)
    model = Holder([twin])
    twin.weight, twin.bias = model.first.weight, model.first.bias
    with (
        pytest.warns(InvariantHazard, match=r"kept\[0\]: .* is not a submodule"),
        bn_updates(model),
    ):
        model(BATCH)
