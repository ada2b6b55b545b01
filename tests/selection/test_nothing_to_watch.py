"""What finds nothing to watch is refused, and the message says what there is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pytest_bninvariants import GateError, frozen, frozen_bn
from pytest_bninvariants.invariants.signature import option_names
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from tests.selection.models import deep, tensors


@pytest.mark.parametrize(
    ("guard", "pattern", "there"),
    [
        (frozen_bn, "layer2", ["stem.bn", "layer1.0.bn1", "head.bn"]),
        (frozen_bn, "layer1.0.bn2", ["layer1.0.bn1"]),
        (frozen_bn, "STEM", ["stem.bn"]),
        (frozen_bn, "stem.b", ["stem.bn"]),
        (frozen_bn, "stem.bn.running_men", ["stem.bn"]),
        (frozen_bn, "bn1", ["layer1.0.bn1", "layer1.1.bn1", "layer10.0.bn1"]),
        (frozen, "layer2", ["stem", "layer1", "layer10", "head"]),
        (frozen, "fc", ["head.fc"]),
        (frozen, "stem..bn", ["stem"]),
        (frozen, " stem", ["stem"]),
    ],
)
def test_a_pattern_that_matches_nothing_is_named_with_what_there_is(
    guard: Callable[..., object], pattern: str, there: list[str]
) -> None:
    with pytest.raises(GateError) as caught, guard(deep(), "stem", pattern):  # type: ignore[attr-defined]
        raise AssertionError("the guard must not be entered")
    message = str(caught.value)
    assert f"{pattern!r} matches nothing in the model" in message
    assert all(repr(name) in message for name in there)


@pytest.mark.parametrize(
    ("guard", "pattern", "meant"),
    [
        (frozen_bn, "stem.bn.runing_var", "did you mean 'stem.bn.running_var' or"),
        (frozen, "head.fc.wieght", "did you mean 'head.fc.weight'? the"),
        (frozen_bn, "stem,layer1", "pass names one by one: 'stem', 'layer1'; the model's BN"),
        (frozen, "stem  head.fc.bias", "pass names one by one: 'stem', 'head.fc.bias'; the"),
        (frozen, "stem; layer*", "pass names one by one: 'stem', 'layer*'; the model's"),
        (frozen, "net.stem", "did you mean 'stem'"),
        (frozen, "net.head.fc", "did you mean 'head.fc'"),
    ],
)
def test_a_name_is_suggested_as_it_is_to_be_written(
    guard: Callable[..., object], pattern: str, meant: str
) -> None:
    with pytest.raises(GateError) as caught, guard(deep(), pattern):  # type: ignore[attr-defined]
        raise AssertionError("the guard must not be entered")
    assert f"{pattern!r} matches nothing in the model; {meant}" in str(caught.value)


def test_an_exclude_is_suggested_as_it_is_to_be_written() -> None:
    with pytest.raises(GateError, match=r"watched; did you mean 'stem\.bn\.running_var' or"):
        tensors(deep(), exclude=("stem.bn.runing_var",))
    with pytest.raises(GateError, match=r"watched; pass names one by one: 'stem', 'head'$"):
        tensors(deep(), exclude=("stem, head",))


@pytest.mark.parametrize(
    ("guard", "pattern", "problem"),
    [
        (frozen_bn, "stem.conv", "'stem.conv' holds no BN layer"),
        (frozen_bn, "head.fc.weight", "'head.fc.weight' holds no BN layer"),
    ],
)
def test_a_module_without_a_bn_layer_is_said_to_have_none(
    guard: Callable[..., object], pattern: str, problem: str
) -> None:
    with pytest.raises(GateError, match=problem), guard(deep(), pattern):  # type: ignore[attr-defined]
        pass


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"parameters": False}, "the model has no buffer"),
        ({}, "the model has no BN layer"),
        ({"buffers": False}, "the model has no BN layer"),
    ],
)
def test_a_model_with_nothing_to_watch_is_a_gate_error(
    options: dict[str, bool], problem: str
) -> None:
    guard = frozen if options == {"parameters": False} else frozen_bn
    with pytest.raises(GateError, match=problem), guard(nn.Linear(2, 2), **options):
        pass


def test_a_typo_is_named_also_where_the_bn_layers_hold_no_tensors() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False, track_running_stats=False))
    with pytest.raises(GateError, match="'typo' matches nothing"), frozen_bn(model, "typo"):
        pass


def test_bn_layers_that_hold_no_tensors_are_not_said_to_be_missing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False, track_running_stats=False))
    with pytest.raises(GateError) as caught, frozen_bn(model, allow_batch_stats=True):
        pass
    assert "the model has no BN layer" not in str(caught.value)


@pytest.mark.parametrize("exclude", ["layer2", "stem.conv", ["stem", "layer2"], ""])
def test_an_exclude_that_leaves_nothing_out_or_nothing_in_is_a_gate_error(exclude: object) -> None:
    scope = {"exclude": option_names(exclude), "bn_only": True}
    problem = "leaves nothing" if exclude == "" else "matches nothing that is watched"
    with pytest.raises(GateError, match=problem):
        tensors(deep(), **scope)


@pytest.mark.parametrize("exclude", ["head", "head.bn", "head.bn.weight"])
def test_an_exclude_of_what_the_names_do_not_cover_is_a_gate_error(exclude: str) -> None:
    assert tensors(deep(), exclude=(exclude,), bn_only=True)
    with pytest.raises(GateError, match=f"exclude='{exclude}' matches nothing that is watched"):
        tensors(deep(), "stem", exclude=(exclude,), bn_only=True)


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
@pytest.mark.parametrize(
    ("modules", "options", "told"),
    [
        ((3,), {}, "got 3 (int)"),
        ((None,), {}, "got None (NoneType)"),
        ((nn.Linear(1, 1),), {}, "got <Linear>"),
        ((["stem", "head"],), {}, "(list)"),
        ((b"stem",), {}, "(bytes)"),
        ((), {"exclude": 3}, "exclude= takes a name or several names; got 3 (int)"),
        ((), {"exclude": iter(["stem"])}, "exclude= takes a name or several names"),
        ((), {"exclude": None}, "exclude= takes a name or several names; got None"),
        ((), {"exclude": [3]}, "exclude= takes a name or several names; got 3"),
        ((), {"exclude": b"stem"}, "exclude= takes a name or several names"),
        ((), {"exclude": [["stem"]]}, "exclude= takes a name or several names"),
        ((), {"parameters": 1}, "parameters= takes True or False; got 1 (int)"),
        ((), {"buffers": None}, "buffers= takes True or False; got None"),
        ((), {"allow_batch_stats": "yes"}, "allow_batch_stats= takes True or False; got 'yes'"),
        ((), {"parameters": torch.tensor(True)}, "parameters= takes True or False"),
        ((), {"parameters": False, "buffers": False}, "leave nothing to watch"),
    ],
)
def test_an_option_of_the_wrong_type_is_a_gate_error(
    guard: Callable[..., object],
    modules: tuple[object, ...],
    options: dict[str, object],
    told: str,
) -> None:
    with pytest.raises(GateError) as caught:
        guard(deep(), *modules, **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [None, "net", [nn.Linear(1, 1)], nn.Linear, {"a": 1}])
@pytest.mark.parametrize("guard", [frozen, frozen_bn])
def test_what_is_no_model_is_a_gate_error(guard: Callable[..., object], model: object) -> None:
    with pytest.raises(GateError, match="takes the model") as caught:
        guard(model, "stem")
    assert f"({type(model).__name__})" in str(caught.value)


def test_an_unknown_option_is_an_error_of_the_gate() -> None:
    with pytest.raises(GateError):
        frozen(deep(), excluded="stem")  # type: ignore[call-arg]


def test_a_module_that_is_below_itself_is_refused() -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(2)))
    model[0].parent = model
    with pytest.raises(GateError, match=r"'0.parent' \(Sequential\) contains itself"):
        select(model, Scope())


def test_a_model_of_many_modules_is_not_taken_for_one_that_is_below_itself() -> None:
    shared = nn.Sequential(*[nn.Identity()] * 200)
    model = nn.Sequential(*[shared] * 200, nn.BatchNorm1d(2))
    assert len(select(model, Scope()).names.modules) == 1 + 200 * 201 + 1
