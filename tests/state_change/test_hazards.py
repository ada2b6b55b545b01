"""What is worth saying of a step that keeps its invariant, and of one that does not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pytest_bninvariants import FrozenStateChanged, InvariantHazard, frozen, frozen_bn
from pytest_bninvariants.invariants.guard import Guard


def warned_of(guard: Any, model: nn.Module, step: Callable[[], object], *modules: str) -> str:
    with pytest.warns(InvariantHazard) as caught, guard(model, *modules):
        step()
    (warning,) = caught
    assert warning.filename == __file__
    return str(warning.message)


def quiet(guard: Any, model: nn.Module, step: Callable[[], object], *modules: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InvariantHazard)
        with guard(model, *modules) as made:
            step()
    return made.verdict.holds and made.verdict.tensors > 0


def test_a_frozen_parameter_that_an_optimizer_holds(net: Any, batch: Tensor) -> None:
    net.backbone.requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters())

    def step() -> None:
        net(batch).sum().backward()
        optimizer.step()

    said = warned_of(frozen, net, step, "backbone")
    assert said.startswith("frozen('backbone') holds, but backbone.conv.weight and 3 more: ")
    assert "in the parameter groups of AdamW, which stepped" in said


def test_an_optimizer_of_the_rest_is_no_hazard(net: Any, batch: Tensor) -> None:
    net.backbone.requires_grad_(False)
    parameters = [p for p in net.parameters() if p.requires_grad]

    def step() -> None:
        net(batch).sum().backward()
        torch.optim.AdamW(parameters).step()

    assert quiet(frozen, net, step, "backbone")


def test_a_frozen_parameter_with_a_gradient(net: Any, batch: Tensor) -> None:
    said = warned_of(frozen, net, lambda: net(batch).sum().backward(), "backbone.conv")
    assert "backbone.conv.weight and 1 more: requires_grad is True, and .grad is set" in said


def test_a_gradient_that_an_evaluation_finds_is_no_hazard(net: Any, batch: Tensor) -> None:
    net(batch).sum().backward()
    with torch.no_grad():
        assert quiet(frozen, net, lambda: net(batch))
    optimizer = torch.optim.SGD([net.neck.weight], lr=0.1)
    net.neck.weight.grad = torch.zeros_like(net.neck.weight)
    said = warned_of(frozen, net, lambda: (net(batch), optimizer.step()), "backbone.conv")
    assert "backbone.conv.weight and 1 more: requires_grad is True, and .grad is set" in said


def test_a_trainable_parameter_that_no_optimizer_holds(net: Any, batch: Tensor) -> None:
    net.backbone.requires_grad_(False)

    def step() -> None:
        net(batch).sum().backward()
        torch.optim.SGD(net.head.parameters(), lr=0.1).step()

    said = warned_of(frozen, net, step, "backbone")
    assert (
        "neck.weight and 1 more: in no optimizer that stepped, although requires_grad is True"
        in said
    )


def test_a_watched_parameter_need_not_be_in_an_optimizer_though_it_is_trainable(
    net: Any,
) -> None:
    optimizer = torch.optim.SGD([*net.neck.parameters(), *net.head.parameters()], lr=0.1)

    def step() -> None:
        with torch.no_grad():
            net.backbone(torch.ones(2, 2, 5))
        net.head(torch.ones(1, 3)).sum().backward()
        optimizer.step()

    assert quiet(frozen, net, step, "backbone")


def test_where_no_optimizer_of_the_model_steps_none_lacks_a_parameter(
    net: Any, batch: Tensor
) -> None:
    other = nn.Linear(1, 1)

    def step() -> None:
        net(batch)
        other(torch.ones(1, 1)).sum().backward()
        torch.optim.SGD(other.parameters(), lr=0.1).step()

    assert quiet(frozen_bn, net, step)


def test_statistics_of_a_new_layer_beside_some_that_were_loaded(net: Any, batch: Tensor) -> None:
    net.requires_grad_(False).neck.reset_running_stats()
    said = warned_of(frozen_bn, net, lambda: net(batch))
    assert "neck: ran with running_mean 0 and running_var 1" in said
    assert "backbone.bn" not in said


def test_statistics_of_a_new_layer_before_some_that_were_loaded(net: Any, batch: Tensor) -> None:
    net.requires_grad_(False).backbone.bn.reset_running_stats()
    said = warned_of(frozen_bn, net, lambda: net(batch))
    assert "backbone.bn: ran with running_mean 0 and running_var 1" in said
    assert "neck" not in said


def test_mean_0_and_variance_1_after_a_batch_are_not_those_of_a_new_layer(
    net: Any, batch: Tensor
) -> None:
    net.requires_grad_(False).neck.reset_running_stats()
    net.neck.num_batches_tracked += 1
    assert quiet(frozen_bn, net, lambda: net(batch))


def test_statistics_of_a_new_layer_whose_weight_was_loaded() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    nn.init.uniform_(model[0].weight)
    assert "0: ran with running_mean 0" in warned_of(
        frozen_bn, model, lambda: model(torch.randn(4, 2))
    )


def test_statistics_of_a_frozen_batch_norm_that_nothing_was_loaded_into() -> None:
    model = nn.Sequential(FrozenBatchNorm2d(3))
    said = warned_of(frozen_bn, model, lambda: model(torch.randn(2, 3, 4, 4)))
    assert "0: ran with running_mean 0" in said


def test_a_new_layer_that_trains_is_a_head_and_no_part_of_a_checkpoint(
    net: Any, batch: Tensor
) -> None:
    net.neck.reset_running_stats()
    net.neck.reset_parameters()
    assert quiet(frozen_bn, net, lambda: net(batch))
    net.neck.requires_grad_(False)
    assert "neck: ran with running_mean 0" in warned_of(frozen_bn, net, lambda: net(batch))


def test_a_new_weight_of_zeros_is_not_taken_for_a_loaded_one() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    nn.init.zeros_(model[1].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with frozen_bn(model) as guard:
            model(torch.randn(4, 3))
    assert guard.verdict.holds
    assert (guard.verdict.layers, guard.verdict.tensors) == (2, 10)


def test_a_new_model_is_no_hazard() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).eval()
    assert quiet(frozen_bn, model, lambda: model(torch.randn(4, 2)))


def test_a_layer_that_did_not_run_is_no_hazard(net: Any, batch: Tensor) -> None:
    net.neck.reset_running_stats()
    assert quiet(frozen_bn, net, lambda: net.backbone(batch))


def test_statistics_that_share_memory(net: Any, batch: Tensor) -> None:
    net.neck.running_var = net.neck.running_mean
    said = warned_of(frozen_bn, net, lambda: net(batch))
    assert "neck: running_mean and running_var share memory" in said


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite(net: Any, batch: Tensor, bad: float) -> None:
    net.neck.running_var[1] = bad
    said = warned_of(frozen_bn, net, lambda: net(batch))
    assert "neck: running statistics are not finite" in said


def norms(count: int, features: int) -> nn.Sequential:
    """Return BN layers with statistics of some data, before a layer that trains."""
    layers = nn.Sequential(*(nn.BatchNorm1d(features) for _ in range(count))).eval()
    for layer in layers:
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(1, 2)
    return layers.append(nn.Linear(features, 1))


@pytest.mark.parametrize(
    ("count", "features"),
    [(5, 2), (40, 1024), (2, 5000)],
    ids=["copied together", "in several parts", "each by itself"],
)
@pytest.mark.parametrize("options", [{}, {"buffers": False}, {"parameters": False}], ids=str)
def test_statistics_are_looked_at_wherever_they_were_copied(
    count: int, features: int, options: dict[str, bool]
) -> None:
    def guard(model: nn.Module) -> Guard:
        return frozen_bn(model, **options)

    def step() -> None:
        model[0](torch.randn(1, features))

    model = norms(count, features)
    assert quiet(guard, model, step)
    model[1].running_var[-1] = float("inf")
    said = warned_of(guard, model, step)
    assert said.endswith("holds, but 1: running statistics are not finite")


def test_statistics_that_share_memory_and_were_copied_apart() -> None:
    model = norms(4, 4000)
    model[2].running_var = model[2].running_mean[:]
    said = warned_of(
        lambda m: frozen_bn(m, parameters=False), model, lambda: model[0](torch.randn(1, 4000))
    )
    assert said.endswith("holds, but 2: running_mean and running_var share memory")


def test_finite_statistics_whose_sum_is_not_are_no_hazard() -> None:
    model = norms(3, 100)
    for layer in model[:3]:
        layer.running_var.fill_(torch.finfo(torch.float32).max)
    assert quiet(frozen_bn, model, lambda: model[0](torch.randn(1, 100)))


def test_a_setting_that_changed_behind_a_layer_that_stayed(net: Any, batch: Tensor) -> None:
    def step() -> None:
        net(batch)
        net.neck.momentum = 0.5

    said = warned_of(frozen_bn, net, step)
    assert said.endswith("holds, but neck: momentum 0.1 -> 0.5")


def test_a_layer_that_never_ran_and_is_new_has_no_data(net: Any, batch: Tensor) -> None:
    net.requires_grad_(False)
    for layer in (net.backbone.bn, net.neck):
        layer.reset_running_stats()
    assert quiet(frozen_bn, net, lambda: net.backbone(batch))


def test_a_tensor_behind_one_that_is_violated_has_its_hazards(net: Any, batch: Tensor) -> None:
    def step() -> None:
        net(batch).sum().backward()
        net.backbone.conv.weight.data.add_(1)

    with pytest.raises(FrozenStateChanged) as caught, frozen(net, "backbone"):
        step()
    verdict = caught.value.verdict
    assert verdict.changed_tensors == ("backbone.conv.weight",)
    told = {hazard.name for hazard in verdict.hazards}
    assert told == {"backbone.conv.bias", "backbone.bn.weight", "backbone.bn.bias"}


def test_a_failure_lists_hazards_and_does_not_warn(net: Any, batch: Tensor) -> None:
    net.neck.running_var[0] = float("nan")
    net.backbone.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", InvariantHazard)
        with pytest.raises(FrozenStateChanged) as caught, frozen_bn(net):
            net(batch)
    assert "also neck: running statistics are not finite" in str(caught.value)


def replaced(net: Any, batch: Tensor) -> None:
    net.neck.weight = nn.Parameter(net.neck.weight.detach() + 1)
    net(batch)


def stepped(net: Any, batch: Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(batch).square().sum().backward()
    optimizer.step()


def swapped(net: Any, batch: Tensor) -> None:
    net.neck = nn.InstanceNorm1d(3, affine=True, track_running_stats=True).eval()
    net(batch)


class OffScale(nn.BatchNorm1d):
    """Its output does not tell what it normalised with."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True) + 0 * x


def in_its_own_forward(net: Any, batch: Tensor) -> None:
    net(batch)
    net.neck.weight.data.add_(1)


@pytest.mark.parametrize("step", [replaced, stepped, swapped, in_its_own_forward])
def test_what_is_a_violation_is_no_hazard_too(
    net: Any, batch: Tensor, step: Callable[[Any, Tensor], None]
) -> None:
    if step is in_its_own_forward:
        net.neck = OffScale(3)
    with pytest.raises(FrozenStateChanged) as caught, frozen(net):
        step(net, batch)
    verdict = caught.value.verdict
    broken = {*verdict.changed_tensors, *verdict.changed_layers}
    assert "neck.weight" in broken or "neck" in broken
    assert broken.isdisjoint(hazard.name for hazard in verdict.hazards)


def test_a_loop_of_guards_warns_once() -> None:
    model = nn.Sequential(FrozenBatchNorm2d(3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            with frozen_bn(model) as guard:
                model(torch.randn(2, 3, 4, 4))
            assert (guard.verdict.holds, guard.verdict.tensors) == (True, 4)
    assert len(caught) == 1


def test_bn_layers_that_did_not_run_though_an_optimizer_stepped(net: Any, batch: Tensor) -> None:
    stale = copy.deepcopy(net.backbone).train()
    optimizer = torch.optim.SGD(net.head.parameters(), 0.1)

    def step(backbone: nn.Module) -> None:
        net.head(backbone(batch).mean(-1)).sum().backward()
        optimizer.step()

    net.requires_grad_(False)
    net.head.requires_grad_(True)
    said = warned_of(frozen_bn, net, lambda: step(stale), "backbone")
    assert "backbone.bn: did not run, although an optimizer stepped: did another model run?" in said
    assert quiet(frozen_bn, net, lambda: step(net.backbone), "backbone")
    assert quiet(frozen, net, lambda: step(stale), "backbone")


def test_a_weight_that_the_step_itself_moved_was_not_loaded() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step() -> None:
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()

    assert quiet(lambda m: frozen_bn(m, parameters=False), model, step)
