"""How a guard is spelled, and what may be passed to one."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection
from functools import wraps
from typing import ParamSpec, TypeVar

from torch import nn

from pytest_bninvariants.errors import GateError, shown

_P = ParamSpec("_P")
_R = TypeVar("_R")


def spelled(invariant: str, modules: tuple[str, ...], **options: object) -> str:
    """Return a guard as its user wrote it.

    Args:
        invariant: its name.
        modules: the names that it was given.
        options: its keywords that are not at their default.
    """
    arguments = [repr(name) for name in modules]
    arguments += [f"{name}={value!r}" for name, value in options.items()]
    return f"{invariant}({', '.join(arguments)})"


def model_of(
    invariant: str, model: object, signature: str = "(model, *modules)", place: str = "first"
) -> nn.Module:
    """Return the model that a guard was given.

    Args:
        invariant: its name.
        model: what it was given.
        signature: how it is called.
        place: where the model stands among its arguments.

    Raises:
        GateError: it is none.
    """
    if not isinstance(model, nn.Module):
        which = "the" if place == "first" else "another"
        raise GateError(
            f"{invariant}{signature} takes {which} model, a torch.nn.Module, {place}; "
            f"got {shown(model)}"
        )
    return model


def insist_on_models(invariant: str, one: object, other: object, signature: str) -> None:
    """Refuse what is no model in the first or the second place; arguments as `model_of`."""
    for model, place in ((one, "first"), (other, "second")):
        model_of(invariant, model, signature, place)


def names_among(model: object, modules: tuple[object, ...]) -> tuple[str, ...]:
    """Return the modules' names, or say how to write what was passed instead of names.

    Raises:
        GateError: a module was passed itself, or a list of names.
    """
    for module in modules:
        if isinstance(module, nn.Module) and isinstance(model, nn.Module):
            names = [name for name, part in model.named_modules() if part is module]
            raise GateError(f"modules are given by name: {_advice(names)}; got {shown(module)}")
        if isinstance(module, (list, tuple, set)):
            names = [name for name in module if isinstance(name, str)]
            raise GateError(f"names are given one by one: {_advice(names)}; got {shown(module)}")
    return modules  # type: ignore[return-value]


def _advice(names: list[str]) -> str:
    return f"write {', '.join(map(repr, names))}" if names else "such as 'backbone.bn1'"


def refusing(invariant: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have a wrong call of an invariant be an error of the gate, which xfail does not hide.

    Args:
        invariant: the function that users call.
    """

    @wraps(invariant)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        __tracebackhide__ = True
        try:
            return invariant(*args, **kwargs)
        except TypeError:
            wrong = _why_refused(invariant, args, kwargs)
            if wrong is None:
                raise
        raise GateError(wrong)

    return call


def _why_refused(
    invariant: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> str | None:
    """Say what is wrong with a call, if its arguments do not fit; None: it is something else."""
    accepted = inspect.signature(invariant)
    try:
        accepted.bind(*args, **kwargs)
    except TypeError as error:
        public = [name for name in accepted.parameters if not name.startswith("_")]
        unknown = [name for name in kwargs if name not in accepted.parameters]
        near = [difflib.get_close_matches(name, public, n=1) for name in unknown]
        meant = "".join(f"; did you mean {match[0]}=?" for match in near if match)
        return f"{invariant.__name__}(): {error}{meant} (it takes {', '.join(public)})"
    return None


def names_of(value: object, option: str = "exclude") -> tuple[str, ...]:
    """Return an option's value as a tuple: a name, or several names.

    Raises:
        GateError: it is neither.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Collection):  # no iterator: a marker's is used up by the first test
        return tuple(value)
    raise GateError(f"{option}= takes a name or several names; got {shown(value)}")
