"""Make the guard that a marker requests, with the models and inputs that it names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import pytest

from pytest_bninvariants.catalogue import INVARIANTS
from pytest_bninvariants.diagnosis.did_you_mean import did_you_mean_option
from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.plugin.markers import MARKERS
from pytest_bninvariants.plugin.model_lookup import TestValue, find_model, follow_path

Values = Mapping[str, TestValue]


class MarkerRequest(NamedTuple):
    """What a marker requests.

    Args:
        name: the name of the invariant.
        modules: the marker's positional arguments.
        options: its keyword arguments without `model`.
        model: the path to the model; None to find the only one.
    """

    name: str
    modules: tuple[Any, ...]
    options: dict[str, Any]
    model: str | None

    @classmethod
    def from_mark(cls, mark: pytest.Mark) -> MarkerRequest:
        """Return what a marker requests.

        Raises:
            GateError: if it has an unknown option, or `model` is not a name.
        """
        accepted = MARKERS[mark.name].accepted
        for option in mark.kwargs:
            if option not in accepted:
                hint = did_you_mean_option(option, accepted)
                raise GateError(
                    f"@pytest.mark.{mark.name} has no option {option}={hint} "
                    f"(accepted: {', '.join(accepted)})"
                )
        options = dict(mark.kwargs)
        model = options.pop("model", None)
        if not (model is None or isinstance(model, str)):
            raise GateError(
                f"@pytest.mark.{mark.name}(model=...) takes the name of a fixture or a dotted path "
                f"such as 'trainer.model'; got {describe(model)}"
            )
        return cls(name=mark.name, modules=mark.args, options=options, model=model)


def make_guard(request: MarkerRequest, values: Values) -> Guard:
    """Return the guard that a marker requests.

    Args:
        request: the marker's request.
        values: the test's values by name; a path begins with such a name.

    Raises:
        GateError: if the model, or an input, cannot be found.
    """
    marker, module = MARKERS[request.name], INVARIANTS[request.name].module
    make = getattr(import_module(f"pytest_bninvariants.{module}"), marker.maker or request.name)
    call = _CALLS[marker.takes](request, values)
    guard: Guard = make(*call.args, **call.options)
    for part in guard.parts:
        part.sources = call.sources
    return guard


class _Call(NamedTuple):
    """The arguments of the function that makes a guard, and where its models were found."""

    args: tuple[Any, ...]
    options: dict[str, Any]
    sources: tuple[str, ...]


def _with_model(request: MarkerRequest, values: Values) -> _Call:
    model, source = find_model(values, request.model)
    return _Call((model, *request.modules), request.options, (source,))


def _with_arguments(request: MarkerRequest, values: Values) -> _Call:
    model, source = find_model(values, request.model)
    options = {**request.options, "modules": request.modules}
    inputs = _inputs(request.name, values, options.pop("inputs", None))
    if isinstance(inputs, dict):
        return _Call((model,), dict(**options, **inputs), (source,))  # dict() refuses a name twice
    return _Call((model, *inputs), options, (source,))


def _with_batch(request: MarkerRequest, values: Values) -> _Call:
    model, source = find_model(values, request.model)
    options = {**request.options, "modules": request.modules}
    inputs = _inputs(request.name, values, options.pop("inputs", None))
    batch = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
    return _Call((model, batch), options, (source,))


def _inputs(name: str, values: Values, paths: object) -> tuple[Any, ...] | dict[str, Any]:
    """Return the arguments to call a model with: by name if `inputs` is a dict, or by position."""
    if isinstance(paths, str):
        return (follow_path(values, paths, "inputs=").value,)
    parts = [*paths.values()] if isinstance(paths, dict) else paths
    if isinstance(parts, list | tuple) and parts and all(isinstance(part, str) for part in parts):
        inputs = [follow_path(values, part, "inputs=").value for part in parts]
        return dict(zip(paths, inputs, strict=True)) if isinstance(paths, dict) else tuple(inputs)
    raise GateError(
        f"@pytest.mark.{name}(inputs=...) takes the name of a fixture or a dotted path such as "
        f"'batch.images', several of them, or a dict of them by keyword; got {describe(paths)}"
    )


def _with_two_models(request: MarkerRequest, values: Values) -> _Call:
    paths, names = request.modules[:2], request.modules[2:]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise GateError(
            f"@pytest.mark.{request.name} takes two models first, by the names of fixtures or "
            f"dotted paths, as in {request.name}('model', 'ema'), or one that must be the same on "
            f"all ranks; got {describe(paths)}"
        )
    one, source = find_model(values, paths[0], "")
    other, other_source = find_model(values, paths[1], "") if len(paths) == 2 else (None, "")
    return _Call((one, other, *names), request.options, (source, other_source))


_CALLS = {
    "model": _with_model,
    "model and arguments": _with_arguments,
    "model and batch": _with_batch,
    "two models": _with_two_models,
}
