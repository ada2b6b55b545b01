"""BN layers are known by family, by their buffers, or by `bn_layer_types`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, GateError, frozen_bn, run_config
from pytest_bninvariants.run_config import override
from pytest_bninvariants.selection import bn_layer_types
from pytest_bninvariants.selection.bn_layers import is_bn_layer
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from tests.selection.models import tensors


class ByItsBuffers(nn.Module):
    """Look like FrozenBatchNorm2d: no base class of torch's, four buffers."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(2))


class ByBuffersThatAreNone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", None)
        self.register_buffer("running_var", None)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(2),
        nn.BatchNorm2d(2),
        nn.BatchNorm3d(2),
        nn.SyncBatchNorm(2),
        nn.LazyBatchNorm1d(),
        nn.LazyBatchNorm2d(),
        nn.LazyBatchNorm3d(),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.BatchNorm2d(2, affine=False),
        nn.InstanceNorm1d(2, track_running_stats=True),
        nn.InstanceNorm2d(2, track_running_stats=True),
        nn.InstanceNorm3d(2, track_running_stats=True),
        nn.LazyInstanceNorm1d(track_running_stats=True),
        type("Own", (nn.BatchNorm2d,), {})(2),
        ByItsBuffers(),
        ByBuffersThatAreNone(),
    ],
    ids=lambda layer: repr(layer).replace("\n", "")[:60],
)
def test_bn_layers_are_known_by_family_or_by_their_buffers(layer: nn.Module) -> None:
    assert is_bn_layer(layer)


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_a_module_with_one_of_the_statistics_is_no_bn_layer(statistic: str) -> None:
    module = nn.Module()
    module.register_buffer(statistic, torch.ones(2))
    assert not is_bn_layer(module)


class Whitening(nn.Module):
    """Keep its statistics under names that only its author knows, and in a child."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("covariance", torch.eye(2))
        self.gain = nn.Linear(2, 2)

    def forward(self, batch: Tensor) -> Tensor:
        return self.gain(batch @ self.covariance)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(2),
        nn.GroupNorm(1, 2),
        nn.InstanceNorm2d(2),
        nn.InstanceNorm2d(2, affine=True),
        nn.LazyInstanceNorm2d(track_running_stats=False),
        nn.Linear(2, 2),
        nn.Sequential(nn.BatchNorm1d(2)),
        Whitening(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_are_no_bn_layers(layer: nn.Module) -> None:
    assert not is_bn_layer(layer)
    with pytest.raises(GateError):
        select(nn.Sequential(layer), Scope(modules=("0.weight",), bn_only=True))


class SpecialWhitening(Whitening):
    pass


@pytest.fixture
def named_types() -> Iterator[Callable[[list[str]], None]]:
    with ExitStack() as stack:
        yield lambda names: stack.enter_context(override(bn_layer_types=tuple(names)))
    assert not run_config.current.bn_layer_types


@pytest.mark.parametrize(
    "name", ["Whitening", f"{__name__}.Whitening", f"{__name__}:Whitening", "SpecialWhitening"]
)
def test_bn_layer_types_names_a_type_or_a_base_of_it(
    named_types: Callable[[list[str]], None], name: str
) -> None:
    model = nn.Sequential(SpecialWhitening(), nn.Linear(2, 2))
    named_types(["Other", name])
    expected = {"0.covariance", "0.gain.weight", "0.gain.bias"}
    assert tensors(model, bn_only=True) == expected
    named_types([])
    assert not is_bn_layer(model[0])


@pytest.mark.parametrize("name", ["whitening", "White*", "torch.nn.BatchNorm1d", "Special"])
def test_bn_layer_types_takes_no_near_misses(
    named_types: Callable[[list[str]], None], name: str
) -> None:
    named_types([name])
    assert not is_bn_layer(Whitening())


@pytest.mark.parametrize(
    "name", ["elsewhere.Whitening", "torch.nn:Whitening", "torch.nn.Whitening"]
)
def test_a_named_type_that_is_not_there_is_a_gate_error(
    named_types: Callable[[list[str]], None], name: str
) -> None:
    named_types([name])
    with pytest.raises(GateError, match=f"{name!r} cannot be imported"):
        is_bn_layer(Whitening())


def test_parameters_of_bn_layers_that_have_none_are_nothing_to_watch() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False))
    with (
        pytest.raises(GateError, match="BN layers have no such tensors"),
        frozen_bn(model, buffers=False),
    ):
        pass


def test_what_a_named_type_keeps_is_held_frozen(named_types: Callable[[list[str]], None]) -> None:
    named_types(["Whitening"])
    model = nn.Sequential(Whitening(), nn.Linear(2, 2))
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        model[0].covariance[0, 1] = 1e-20
    assert caught.value.verdict.changed_tensors == ("0.covariance",)
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        model[0].gain.weight.data[0, 1] += 1
    assert caught.value.verdict.changed_tensors == ("0.gain.weight",)


def test_each_name_with_a_module_must_be_a_class_that_can_be_imported() -> None:
    bn_layer_types.require_importable(["Net", "torch.nn.Linear", "torch.nn:BatchNorm1d"])
    for name in ("no.such.Module", "torch.nn.NoSuchLayer", "torch.nn:Linear.inner"):
        with pytest.raises(GateError, match=f"'{name}' cannot be imported"):
            bn_layer_types.require_importable(["torch.nn.Linear", name])
    with pytest.raises(GateError, match="relu' is not a class"):
        bn_layer_types.require_importable(["torch.nn.functional.relu"])


def test_a_name_without_a_module_that_no_module_has_is_found() -> None:
    names = ["BatchNorm1d", "NoSuchLayer", "no.such.Module", "ByItsBuffers"]
    assert bn_layer_types.find_undefined(names) == {"NoSuchLayer"}


def test_a_name_may_mean_another_class_in_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (type("Own", (nn.Module,), {})() for _ in range(2))
    module = ModuleType("layers_of_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for meant, other in ((first, second), (second, first)):
        module.Own = type(meant)  # type: ignore[attr-defined]
        with override(bn_layer_types=(f"{module.__name__}.Own",)):
            assert is_bn_layer(meant)
            assert not is_bn_layer(other)
