"""Check how users call invariants, and spell a guard as its user wrote it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import fields
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

from torch import nn

from pytest_bninvariants.diagnosis.did_you_mean import by_position, did_you_mean_option
from pytest_bninvariants.errors import GateError, InvariantBroken, describe
from pytest_bninvariants.guard_registry import add_raised
from pytest_bninvariants.verdict import Verdict

_P = ParamSpec("_P")
_R = TypeVar("_R")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def refuse_wrong_calls(*, models: int = 1) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator that turns a wrong call of an invariant into a GateError.

    A bare `xfail` would take a TypeError for the failure that it expects; a GateError it does not.

    Args:
        models: how many of the first arguments are models.
    """

    def decorate(invariant: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(invariant)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            __tracebackhide__ = True
            try:
                first = args[:models]
                if len(first) < models or not all(isinstance(model, nn.Module) for model in first):
                    _check_call(invariant, models, args, kwargs)
                try:
                    return _not_for_with(invariant(*args, **kwargs))
                except TypeError:  # raised by this call, or by something that it runs
                    _check_call(invariant, models, args, kwargs)
                    raise
            except (GateError, InvariantBroken) as failure:
                add_raised(failure)
                raise

        return call

    return decorate


class ImmediateVerdict(Verdict):
    """The verdict of an invariant that has judged already, where a `with` has nothing to guard."""

    __slots__ = ()

    def __enter__(self) -> NoReturn:
        """Refuse to be a context manager.

        Raises:
            GateError: always.
        """
        __tracebackhide__ = True
        error = GateError(
            f"{self.guard} judges at once: call it after the step, and without `with`"
        )
        add_raised(error)
        raise error

    def __exit__(self, *_: object) -> None:
        raise AssertionError("it is never entered")


def _not_for_with(result: _R) -> _R:
    """Return a result; a verdict as one that says so where it is used in a `with`."""
    if not isinstance(result, Verdict):
        return result
    values = {each.name: getattr(result, each.name) for each in fields(result)}
    return cast(_R, ImmediateVerdict(**values))


def _check_call(
    invariant: Callable[..., object], models: int, args: tuple[object, ...], kwargs: dict[str, Any]
) -> None:
    """Bind arguments as Python does when it calls a function; this takes longer than the call.

    Raises:
        GateError: if they do not fit, or one of the first is not a model.
    """
    signature = inspect.signature(invariant)
    try:
        arguments = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        hint = _hint(invariant.__name__, signature, kwargs)
        raise GateError(f"{invariant.__name__}(): {error}{hint}") from None
    for name in list(signature.parameters)[:models]:
        value = arguments.get(name)
        is_default = value is signature.parameters[name].default
        if not (is_default or isinstance(value, nn.Module)):
            raise GateError(_not_a_model(invariant.__name__, signature, name, value))


def _hint(invariant: str, signature: inspect.Signature, keywords: dict[str, Any]) -> str:
    """Return the end of a message about wrong arguments: similar names, and all names."""
    names = list(signature.parameters)
    accepted = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_POSITIONAL]
    first = ", ".join(p.name for p in signature.parameters.values() if p.kind in _POSITIONAL)
    hints = [
        by_position(name, value, f"{invariant}({first}, ", accepted)
        or did_you_mean_option(name, names)
        for name, value in keywords.items()
        if name not in accepted
    ]
    return f"{''.join(hints)} (it takes {', '.join(names)})"


def _not_a_model(invariant: str, signature: inspect.Signature, name: str, value: object) -> str:
    is_first = name == next(iter(signature.parameters))
    which, place = ("the", "first") if is_first else ("another", "second")
    is_function = inspect.isfunction(value)
    meant = f"; on a test write @pytest.mark.{invariant}" if is_function else ""
    return (
        f"{invariant}({_required(signature)}) takes {which} model, a torch.nn.Module, {place}; "
        f"got {describe(value)}{meant}"
    )


def _required(signature: inspect.Signature) -> str:
    """Return a signature without its options, e.g. `model, *modules`."""
    parameters = signature.parameters.values()
    parts = [each.name for each in parameters if each.kind in _POSITIONAL]
    parts += [f"*{each.name}" for each in parameters if each.kind is each.VAR_POSITIONAL]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    return ", ".join([*parts, *(["*", *keywords] if keywords else [])])


def module_names(model: nn.Module, modules: tuple[object, ...]) -> tuple[str, ...]:
    """Return the names of modules that a user passed to an invariant.

    Raises:
        GateError: if one is not a name; the message says how to write it.
    """
    for module in modules:
        if not isinstance(module, str):
            raise GateError(f"{_how_to_name(model, module)}; got {describe(module)}")
    return tuple(map(str, modules))


def _how_to_name(model: nn.Module, module: object) -> str:
    if isinstance(module, nn.Module):
        names = [name for name, part in model.named_modules() if part is module]
        return f"modules are given by name: {_example(names)}"
    if isinstance(module, (list, tuple, set)):
        names = [name for name in module if isinstance(name, str)]
        return f"pass names one by one: {_example(names)}"
    return "pass modules by qualified name, such as 'backbone.bn1'"


def _example(names: list[str]) -> str:
    return f"write {', '.join(map(repr, names))}" if names else "such as 'backbone.bn1'"


def option_names(value: object, option: str = "exclude") -> tuple[str, ...]:
    """Return the names in an option that takes a name, or several names.

    Raises:
        GateError: if the value is neither.
    """
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Collection):  # the first test would use up an iterator in a marker
        raise GateError(f"{option}= takes a name or several names; got {describe(value)}")
    for name in names:
        if not isinstance(name, str):
            raise GateError(f"{option}= takes a name or several names; got {describe(name)}")
    return tuple(names)


def spell(invariant: str, modules: tuple[str, ...], **options: object) -> str:
    """Return a guard as its user wrote it.

    Args:
        invariant: its name.
        modules: the names of modules that the user passed.
        options: its keyword arguments that differ from their defaults.
    """
    arguments = [repr(name) for name in modules]
    arguments += [f"{name}={value!r}" for name, value in options.items()]
    return f"{invariant}({', '.join(arguments)})"
