"""How an invariant is called: what it refuses, and how a guard is spelled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import nn

from pytest_bninvariants.diagnosis.did_you_mean import did_you_mean_option
from pytest_bninvariants.errors import GateError, describe

_P = ParamSpec("_P")
_R = TypeVar("_R")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def refuse_wrong_calls(*, models: int = 1) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator that makes a wrong call of an invariant a GateError.

    A TypeError would pass for the failure that a bare `xfail` expects; a GateError does not.

    Args:
        models: how many of the first arguments are models.
    """

    def decorate(invariant: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(invariant)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            __tracebackhide__ = True
            given = args[:models]
            if len(given) < models or not all(isinstance(model, nn.Module) for model in given):
                _check_call(invariant, models, args, kwargs)
            try:
                return invariant(*args, **kwargs)
            except TypeError:  # of this call, or of something that it runs
                _check_call(invariant, models, args, kwargs)
                raise

        return call

    return decorate


def _check_call(
    invariant: Callable[..., object], models: int, args: tuple[object, ...], kwargs: dict[str, Any]
) -> None:
    """Bind arguments as Python does when it calls a function, which takes longer than the call.

    Raises:
        GateError: if they do not fit, or one of the first is not a model.
    """
    accepted = inspect.signature(invariant)
    try:
        given = accepted.bind(*args, **kwargs).arguments
    except TypeError as error:
        hint = _what_it_takes(accepted, kwargs)
        raise GateError(f"{invariant.__name__}(): {error}{hint}") from None
    for name in list(accepted.parameters)[:models]:
        value = given.get(name)
        is_default = value is accepted.parameters[name].default
        if not (is_default or isinstance(value, nn.Module)):
            raise GateError(_not_a_model(invariant.__name__, accepted, name, value))


def _what_it_takes(accepted: inspect.Signature, given: Collection[str]) -> str:
    """Return the end of a message about arguments that do not fit: what was meant, what does."""
    names = list(accepted.parameters)
    unknown = [name for name in given if name not in names]
    meant = "".join(did_you_mean_option(name, names) for name in unknown)
    return f"{meant} (it takes {', '.join(names)})"


def _not_a_model(invariant: str, accepted: inspect.Signature, name: str, value: object) -> str:
    is_first = name == next(iter(accepted.parameters))
    which, place = ("the", "first") if is_first else ("another", "second")
    return (
        f"{invariant}({_required(accepted)}) takes {which} model, a torch.nn.Module, {place}; "
        f"got {describe(value)}"
    )


def _required(accepted: inspect.Signature) -> str:
    """Return a signature without its options, e.g. `model, *modules`."""
    named = accepted.parameters.values()
    parts = [each.name for each in named if each.kind in _POSITIONAL]
    parts += [f"*{each.name}" for each in named if each.kind is each.VAR_POSITIONAL]
    keywords = [e.name for e in named if e.kind is e.KEYWORD_ONLY and e.default is e.empty]
    return ", ".join([*parts, *(["*", *keywords] if keywords else [])])


def module_names(model: nn.Module, modules: tuple[object, ...]) -> tuple[str, ...]:
    """Return the names of modules that an invariant was given.

    Raises:
        GateError: if one is not a name; it says how to write it.
    """
    names = tuple(module for module in modules if isinstance(module, str))
    for module in modules:
        if not isinstance(module, str):
            raise GateError(f"{_how_to_name(model, module)}; got {describe(module)}")
    return names


def _how_to_name(model: nn.Module, module: object) -> str:
    if isinstance(module, nn.Module):
        names = [name for name, part in model.named_modules() if part is module]
        return f"modules are given by name: {_example(names)}"
    if isinstance(module, (list, tuple, set)):
        names = [name for name in module if isinstance(name, str)]
        return f"names are given one by one: {_example(names)}"
    return "modules are given by qualified name, such as 'backbone.bn1'"


def _example(names: list[str]) -> str:
    return f"write {', '.join(map(repr, names))}" if names else "such as 'backbone.bn1'"


def option_names(value: object, option: str = "exclude") -> tuple[str, ...]:
    """Return an option's value as a tuple: a name, or several names.

    Raises:
        GateError: if it is neither.
    """
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Collection):  # no iterator: a marker's is used up by the first test
        raise GateError(f"{option}= takes a name or several names; got {describe(value)}")
    for name in names:
        if not isinstance(name, str):
            raise GateError(f"{option}= takes a name or several names; got {describe(name)}")
    return tuple(names)


def spell(invariant: str, modules: tuple[str, ...], **options: object) -> str:
    """Return a guard as its user wrote it.

    Args:
        invariant: its name.
        modules: the names that it was given.
        options: its keywords that are not at their default.
    """
    arguments = [repr(name) for name in modules]
    arguments += [f"{name}={value!r}" for name, value in options.items()]
    return f"{invariant}({', '.join(arguments)})"
