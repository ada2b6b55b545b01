"""Make the guard that a marker asks for, from what the test has at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import pytest

import pytest_bninvariants
from pytest_bninvariants.errors import GateError, shown
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.plugin.markers import MARKERS
from pytest_bninvariants.plugin.model_lookup import Value, find, follow

Values = Mapping[str, Value]
_GuardAndSources = tuple[Guard, tuple[str, ...]]
"""A guard, and where each of its models was found."""


class Request(NamedTuple):
    """A guard that a marker asks for.

    Args:
        name: the invariant.
        modules: the marker's positional arguments.
        options: its keywords but `model`.
        model: where to find the model; None to look for the only one.
    """

    name: str
    modules: tuple[Any, ...]
    options: dict[str, Any]
    model: str | None

    @classmethod
    def of(cls, mark: pytest.Mark) -> Request:
        """Read a marker.

        Raises:
            GateError: it has an unknown option, or `model` is no name.
        """
        accepted = MARKERS[mark.name].accepted
        for option in mark.kwargs:
            if option not in accepted:
                near = get_close_matches(option, accepted, n=1)
                hint = f"; did you mean {near[0]}=?" if near else ""
                raise GateError(
                    f"@pytest.mark.{mark.name} has no option {option}={hint} "
                    f"(accepted are {', '.join(accepted)})"
                )
        options = dict(mark.kwargs)
        model = options.pop("model", None)
        if not (model is None or isinstance(model, str)):
            raise GateError(
                f"@pytest.mark.{mark.name}(model=...) takes the name of a fixture or a dotted path "
                f"such as 'trainer.model'; got {shown(model)}"
            )
        return cls(name=mark.name, modules=mark.args, options=options, model=model)


def guard_of(request: Request, values: Values) -> Guard:
    """Return the guard that a marker asks for.

    Args:
        request: what it says.
        values: the test's values by the name that a path begins with.

    Raises:
        GateError: the model, or an input, is not found.
    """
    guard, sources = _MAKERS.get(request.name, _around_model)(request, values)
    for part in guard.parts:
        part.sources = sources
    return guard


def _around_model(request: Request, values: Values) -> _GuardAndSources:
    model, source = find(values, request.model)
    make = getattr(pytest_bninvariants, request.name)
    return make(model, *request.modules, **request.options), (source,)


def _same_output(request: Request, values: Values) -> _GuardAndSources:
    from pytest_bninvariants.invariants.same_output.guard import same_output

    model, source = find(values, request.model)
    options = dict(request.options)
    inputs = _inputs(request.name, values, options.pop("inputs", None))
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    guard = same_output(model, *args, modules=request.modules, **options, **kwargs)
    return guard, (source,)


def _batch_invariant(request: Request, values: Values) -> _GuardAndSources:
    from pytest_bninvariants.invariants.batch_invariant.guard import batch_guard

    model, source = find(values, request.model)
    options = dict(request.options)
    inputs = _inputs(request.name, values, options.pop("inputs", None))
    single = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
    return batch_guard(model, single, modules=request.modules, **options), (source,)


def _inputs(name: str, values: Values, given: object) -> tuple[Any, ...] | dict[str, Any]:
    """Return what a model is called with: by position, or by name where `inputs` is a dict."""
    if isinstance(given, str):
        return (follow(values, given, "inputs=").value,)
    parts = [*given.values()] if isinstance(given, dict) else given
    if isinstance(parts, list | tuple) and parts and all(isinstance(part, str) for part in parts):
        found = [follow(values, part, "inputs=").value for part in parts]
        return dict(zip(given, found, strict=True)) if isinstance(given, dict) else tuple(found)
    raise GateError(
        f"@pytest.mark.{name}(inputs=...) takes the name of a fixture or a dotted path such as "
        f"'batch.images', several of them, or a dict of them by keyword; got {shown(given)}"
    )


def _in_sync(request: Request, values: Values) -> _GuardAndSources:
    from pytest_bninvariants.invariants.in_sync.guard import sync_guard

    paths, names = request.modules[:2], request.modules[2:]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise GateError(
            "@pytest.mark.in_sync takes two models first, by the names of fixtures or dotted "
            "paths, as in in_sync('model', 'ema'), or one that is to be the same on all ranks; "
            f"got {shown(paths)}"
        )
    found = [find(values, path, "") for path in paths]
    (one, of_one), (other, of_other) = found[0], found[-1] if found[1:] else (None, "")
    return sync_guard(one, other, *names, **request.options), (of_one, of_other)


_MAKERS: dict[str, Callable[[Request, Values], _GuardAndSources]] = {
    "same_output": _same_output,
    "batch_invariant": _batch_invariant,
    "in_sync": _in_sync,
}
