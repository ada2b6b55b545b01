"""Arguments of an invariant are read, or the message shows how to write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from pytest_bninvariants import GateError, InvariantBroken, Verdict, frozen, in_sync
from pytest_bninvariants.invariants.signature import (
    ImmediateVerdict,
    module_names,
    option_names,
    refuse_wrong_calls,
    spell,
)

NET = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
HELD = Verdict(
    guard="held()", noun="layer", model="Net", source="", layers=1, tensors=None, changes=()
)


def told(call: Callable[..., object], *args: Any, **options: Any) -> str:
    with pytest.raises(GateError) as caught:
        call(*args, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        (NET[1], "modules are given by name: write '1'; got <BatchNorm1d>"),
        (nn.ReLU(), "modules are given by name: such as 'backbone.bn1'; got <ReLU>"),
        (["0", "1"], "pass names one by one: write '0', '1'; got ['0', '1'] (list)"),
        (("0", 3), "pass names one by one: write '0'; got ('0', 3) (tuple)"),
        ({3}, "pass names one by one: such as 'backbone.bn1'; got {3} (set)"),
        (3, "pass modules by qualified name, such as 'backbone.bn1'; got 3 (int)"),
    ],
)
def test_what_is_not_a_name_is_told_how_to_be_written(module: object, advice: str) -> None:
    assert told(module_names, NET, ("0", module)) == advice


def test_names_are_taken_as_they_are() -> None:
    assert module_names(NET, ("0", "1")) == ("0", "1")
    assert option_names("neck") == ("neck",)
    assert option_names(["neck", "head"]) == ("neck", "head")
    assert option_names(()) == ()


def test_the_option_that_takes_no_names_is_named() -> None:
    assert told(option_names, 3) == "exclude= takes a name or several names; got 3 (int)"
    assert told(option_names, ["a", 3], "modules") == (
        "modules= takes a name or several names; got 3 (int)"
    )


@pytest.mark.parametrize(
    ("modules", "options", "spelled"),
    [
        ((), {}, "frozen()"),
        (("a", "b"), {}, "frozen('a', 'b')"),
        ((), {"rtol": 0.5, "to": "x"}, "frozen(rtol=0.5, to='x')"),
        (("a",), {"k": 2}, "frozen('a', k=2)"),
    ],
)
def test_a_guard_is_spelled(
    modules: tuple[str, ...], options: dict[str, object], spelled: str
) -> None:
    assert spell("frozen", modules, **options) == spelled


def test_what_an_invariant_takes_is_told_with_what_was_meant() -> None:
    assert told(frozen, NET, modules=["0", "1"]).startswith(
        "frozen(): got an unexpected keyword argument 'modules'; "
        "give modules by position: frozen(model, '0', '1') (it takes model, modules, "
    )
    assert "; did you mean exclude=? (it takes " in told(frozen, NET, exclud="0")
    assert "argument 'x' (it takes " in told(frozen, NET, x="0")


def test_a_function_is_told_to_be_a_test_and_another_value_is_not() -> None:
    said = told(frozen, told)
    assert said.startswith("frozen(model, *modules) takes the model, a torch.nn.Module, first; got")
    assert said.endswith("; on a test write @pytest.mark.frozen")
    assert "on a test" not in told(frozen, 3)
    assert re.match(
        r"in_sync\(one, other, \*modules\) takes another .* second", told(in_sync, NET, 3)
    )


def test_a_model_that_is_left_out_where_it_may_be_is_no_mistake() -> None:
    assert told(in_sync, NET).startswith("in_sync() takes a second model")
    assert told(in_sync, NET, None).startswith("in_sync() takes a second model")


@refuse_wrong_calls()
def own_error(model: nn.Module, error: Exception | None = None, *, needed: int = 0) -> Verdict:
    if error is not None:
        raise error
    return HELD


def test_a_call_that_fits_gives_its_own_errors_and_results() -> None:
    mine = TypeError("mine")
    with pytest.raises(TypeError) as caught:
        own_error(NET, mine)
    assert caught.value is mine
    assert own_error(NET).layers == 1
    assert own_error(model=NET).layers == 1


def test_a_verdict_that_is_there_already_guards_no_block() -> None:
    verdict = own_error(NET)
    assert isinstance(verdict, ImmediateVerdict)
    assert verdict.to_dict() == HELD.to_dict()
    with pytest.raises(GateError, match=r"held\(\) judges at once: call it after the step, and"):
        verdict.__enter__()


def test_what_a_wrong_call_raises_is_known_to_the_pytest_layer(findings: list[Any]) -> None:
    errors = [GateError("no"), InvariantBroken(HELD)]
    for error in errors:
        with pytest.raises(type(error)):
            own_error(NET, error)
    assert [finding.carrier for finding in findings] == errors
    findings.clear()
