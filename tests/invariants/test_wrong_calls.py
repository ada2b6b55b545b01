"""A wrong call of any invariant is an error of the gate, and says what was meant."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from torch import Tensor, nn

import pytest_bninvariants
from pytest_bninvariants import GateError, Guard, catalogue, frozen

INVARIANTS = [*catalogue.INVARIANTS, "assert_same_output"]
OF_ANY = pytest.mark.parametrize("name", INVARIANTS)


def call(
    name: str, net: nn.Module, batch: Tensor, given: dict[str, object] | None = None, **more: object
) -> AbstractContextManager[object]:
    """Call an invariant with all that it requires, some of it given, and with more keywords."""
    arguments: dict[str, object] = {
        "model": net,
        "module": net,
        "one": net,
        "other": type(net)(),
        "inputs": batch,
        "batch": batch,
        "k": 2,
        "loss": lambda model, part: model(part).sum(),
    } | (given or {})
    invariant = getattr(pytest_bninvariants, name)
    required = [each for each in parameters_of(name) if each.name in arguments]
    made = invariant(
        *(arguments[each.name] for each in required if each.kind is not each.KEYWORD_ONLY),
        **{each.name: arguments[each.name] for each in required if each.kind is each.KEYWORD_ONLY},
        **more,
    )
    return made if isinstance(made, Guard) else nullcontext()


def parameters_of(name: str) -> list[inspect.Parameter]:
    return [*inspect.signature(getattr(pytest_bninvariants, name)).parameters.values()]


@OF_ANY
def test_an_unknown_keyword_is_an_error_of_the_gate(name: str, net: Any, batch: Tensor) -> None:
    options = [each.name for each in parameters_of(name) if each.kind is each.KEYWORD_ONLY]
    assert options
    for option in options:
        with pytest.raises(GateError) as caught, call(name, net, batch, **{f"{option}s": 1}):
            net(batch)
        told = str(caught.value)
        assert f"got an unexpected keyword argument '{option}s'" in told
        if "named_inputs" in [each.name for each in parameters_of(name)]:
            assert "raised on these inputs" in told  # any keyword may be one of the model's
        else:
            assert f"; did you mean {option}=? (it takes " in told


@OF_ANY
def test_no_arguments_are_an_error_of_the_gate(name: str) -> None:
    first = parameters_of(name)[0].name
    told = rf"^{name}\(\): missing a required .*argument: '{first}' \(it takes {first}, "
    with pytest.raises(GateError, match=told):
        getattr(pytest_bninvariants, name)()


@OF_ANY
@pytest.mark.parametrize("model", [None, "net", [nn.Linear(1, 1)], nn.Linear, {"a": 1}])
def test_what_is_not_a_model_is_an_error_of_the_gate(
    name: str, model: object, net: Any, batch: Tensor
) -> None:
    first = parameters_of(name)[0].name
    told = rf"^{name}\({first}, .*\) takes the model, a torch.nn.Module, first; got "
    with pytest.raises(GateError, match=told) as caught:
        call(name, net, batch, {first: model})
    assert str(caught.value).endswith(f"({type(model).__name__})")


@pytest.mark.parametrize("name", ["in_sync", "assert_same_output"])
def test_what_is_not_another_model_is_an_error_of_the_gate(
    name: str, net: Any, batch: Tensor
) -> None:
    told = rf"^{name}\(one, other, .*\) takes another model, a torch.nn.Module, second; got 'ema' "
    with pytest.raises(GateError, match=told):
        call(name, net, batch, {"other": "ema"})


@pytest.mark.parametrize(
    "arguments", ["model, exclud=1, decai=1, paramters=1, rtoll=1", "", "'model'"]
)
def test_a_bare_xfail_does_not_hide_a_wrong_call(pytester: pytest.Pytester, arguments: str) -> None:
    tests = [
        f"@pytest.mark.xfail\ndef test_{name}():\n    pytest_bninvariants.{name}({arguments})\n"
        for name in INVARIANTS
    ]
    model = "model = torch.nn.BatchNorm1d(2)"
    pytester.makepyfile("\n".join(["import pytest, pytest_bninvariants, torch", model, *tests]))
    pytester.runpytest("-o", "asyncio_default_fixture_loop_scope=function").assert_outcomes(
        failed=len(INVARIANTS)
    )


def test_a_type_error_of_a_users_own_is_theirs(net: Any) -> None:
    class Names(tuple):
        def __iter__(self) -> Iterator[str]:
            raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        frozen(net, exclude=Names())


OPTIONS = [
    (name, option)
    for name in INVARIANTS
    for option in ("modules", "exclude")
    if any(each.name == option and each.kind is each.KEYWORD_ONLY for each in parameters_of(name))
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
@pytest.mark.parametrize("names", [3, [3], iter(["neck"])])
def test_names_that_are_not_names_are_an_error_of_the_gate(
    name: str, option: str, names: object, net: Any, batch: Tensor
) -> None:
    with pytest.raises(GateError, match=f"{option}= takes a name or several names; got "):
        call(name, net, batch, **{option: names})
