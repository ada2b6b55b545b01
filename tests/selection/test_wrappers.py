"""Wrappers, ties and parametrizations change the names of a model, and not what is watched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from pytest_bninvariants import FrozenStateChanged, GateError, frozen, frozen_bn
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from tests.selection.models import STATE, deep, layers, tensors
from tests.watching import watched


class Fsdp(nn.Module):
    """Name its child as FullyShardedDataParallel does, which needs a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compile": lambda module: torch.compile(module, backend="eager"),  # type: ignore[return-value]
    "checkpoint": checkpoint_wrapper,
    "FSDP": Fsdp,
    "DataParallel of compile": lambda m: nn.DataParallel(
        torch.compile(m, backend="eager")  # type: ignore[arg-type]
    ),
    "compile of FSDP": lambda m: torch.compile(Fsdp(m), backend="eager"),  # type: ignore[return-value]
}


PREFIXES = ("", "module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@pytest.mark.parametrize("wrap", [*WRAPPERS.values(), AveragedModel], ids=[*WRAPPERS, "Averaged"])
@pytest.mark.parametrize("prefix", [*PREFIXES, "module._orig_mod."])
def test_wrapper_prefixes_match_with_and_without(
    wrap: Callable[[nn.Module], nn.Module], prefix: str
) -> None:
    selection = select(wrap(deep()), Scope(modules=(f"{prefix}layer1",), bn_only=True))
    assert set(selection.bn_layers) == {"layer1.0.bn1", "layer1.1.bn1"}
    assert all(watched.name.endswith(key) for key, watched in selection.tensors.items())
    assert len(selection.tensors) == 2 * len(STATE)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrapper_prefix_may_be_written_where_there_is_no_wrapper(prefix: str) -> None:
    assert layers(deep(), f"{prefix}stem.bn") == {"stem.bn"}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("inside", ["", "_fsdp_wrapped_module.", "module."])
def test_a_wrapper_deep_in_the_model_does_not_change_its_names(
    wrap: Callable[[nn.Module], nn.Module], inside: str
) -> None:
    model = deep()
    model.layer1 = wrap(model.layer1)
    selection = select(model, Scope(modules=(f"layer1.{inside}0",), bn_only=True))
    assert set(selection.bn_layers) == {"layer1.0.bn1"}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_step_that_wraps_a_part_of_the_model_changes_nothing(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    model = deep().eval()
    with frozen_bn(model, "layer1") as guard:
        model.layer1 = wrap(model.layer1)
    assert watched(guard) == (2, 10)


def test_a_wrappers_own_buffer_is_watched_beside_its_models_of_that_name() -> None:
    model = nn.Module()
    model.register_buffer("n_averaged", torch.zeros(3))
    average = AveragedModel(model)
    selection = select(average, Scope())
    assert [watched.name for watched in selection.tensors.values()] == [
        "n_averaged",
        "module.n_averaged",
    ]
    with pytest.raises(FrozenStateChanged) as caught, frozen(average):
        average.module.n_averaged += 1
    assert caught.value.verdict.changed_tensors == ("module.n_averaged",)


class OwnChildCalledModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = deep().get_submodule("stem")
        self.other = deep().get_submodule("stem")


def test_a_users_own_child_called_module_is_no_wrapper() -> None:
    model = OwnChildCalledModule()
    assert layers(model, bn_only=True) == {"module.bn", "other.bn"}
    assert layers(model, "module", bn_only=True) == {"module.bn"}
    assert layers(model, "other", bn_only=True) == {"other.bn"}
    with pytest.raises(GateError, match="'bn' matches nothing"):
        layers(model, "bn")


class LooksLikeBatchNorm(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("running_mean", torch.zeros(2))
        self.register_buffer("running_var", torch.ones(2))

    def forward(self, batch: Tensor) -> Tensor:
        output: Tensor = self.module(batch)
        return output


def test_a_wrapper_that_looks_like_a_batchnorm_hides_no_layer_inside_it() -> None:
    model = nn.Sequential(LooksLikeBatchNorm(nn.BatchNorm1d(2))).eval()
    assert layers(model, bn_only=True) == {"0", "0.module"}
    assert set(select(model, Scope(modules=("0",), bn_only=True)).bn_layers) == {"0", "0.module"}
    with frozen_bn(model):
        model(torch.randn(4, 2))
    untracked = nn.BatchNorm1d(2, track_running_stats=False)
    hidden = nn.Sequential(LooksLikeBatchNorm(untracked)).eval()
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(hidden):
        hidden(torch.randn(4, 2))
    assert caught.value.verdict.changed_layers == ("0.module",)


def test_tied_modules_are_watched_under_every_name() -> None:
    model = nn.Module()
    model.first = nn.BatchNorm1d(2)
    model.second = model.first
    assert layers(model) == {"first", "second"}
    assert set(select(model, Scope(bn_only=True)).bn_layers) == {"first", "second"}


def test_tied_tensors_are_watched_under_every_name() -> None:
    model = nn.Module()
    model.embed, model.out = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
    model.out.weight = model.embed.weight
    assert tensors(model) == {"embed.weight", "out.weight"}
    assert tensors(model, "out") == {"out.weight"}
    with pytest.raises(FrozenStateChanged) as caught, frozen(model):
        model.embed.weight.data.add_(1)
    assert caught.value.verdict.changed_tensors == ("embed.weight", "out.weight")


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_a_parametrized_bn_layers_state_is_watched_where_parametrize_keeps_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    parametrize.register_parametrization(model[1], "weight", Double())
    original = "1.parametrizations.weight.original"
    expected = {f"1.{name}" for name in STATE - {"weight"}} | {original}
    assert tensors(model, bn_only=True) == expected
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        model[1].parametrizations.weight.original.data.add_(1)
    assert caught.value.verdict.changed_tensors == (original,)


def test_a_parametrized_bn_layer_counts_as_one_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    parametrize.register_parametrization(model[1], "weight", Double())
    with (
        pytest.raises(FrozenStateChanged, match="1 of 1 frozen BN layer changed"),
        frozen_bn(model),
    ):
        model[1].running_mean += 1
