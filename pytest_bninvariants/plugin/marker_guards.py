"""Make the guard that a marker requests, with the models and inputs that it names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import pytest
from torch import nn

from pytest_bninvariants.catalogue import INVARIANTS
from pytest_bninvariants.diagnosis.did_you_mean import by_position, did_you_mean_option
from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.plugin.markers import MARKERS
from pytest_bninvariants.plugin.model_lookup import FoundModel, TestValue, find_model, follow_path

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
        for option, value in mark.kwargs.items():
            if option not in accepted:
                hint = by_position(option, value, f"@pytest.mark.{mark.name}(", accepted)
                hint = hint or did_you_mean_option(option, accepted)
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


def make_guard(request: MarkerRequest, values: Values) -> tuple[Guard, tuple[FoundModel, ...]]:
    """Return the guard that a marker requests, and its models.

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
        part.sources = tuple(found.source for found in call.models)
    return guard, call.models


class _Call(NamedTuple):
    """The arguments of the function that makes a guard, and the models among them."""

    args: tuple[Any, ...]
    options: dict[str, Any]
    models: tuple[FoundModel, ...]


def _the_model(request: MarkerRequest, values: Values) -> FoundModel:
    return find_model(values, request.model, INVARIANTS[request.name].usage)


def _with_model(request: MarkerRequest, values: Values) -> _Call:
    found = _the_model(request, values)
    return _Call((found.model, *request.modules), request.options, (found,))


def _with_arguments(request: MarkerRequest, values: Values) -> _Call:
    options = {**request.options, "modules": request.modules}
    inputs = _inputs(request, values, options.pop("inputs", None))
    found = _the_model(request, values)
    if isinstance(inputs, dict):
        return _Call((found.model,), dict(**options, **inputs), (found,))  # refuses a name twice
    return _Call((found.model, *inputs), options, (found,))


def _with_batch(request: MarkerRequest, values: Values) -> _Call:
    options = {**request.options, "modules": request.modules}
    inputs = _inputs(request, values, options.pop("inputs", None))
    found = _the_model(request, values)
    batch = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
    return _Call((found.model, batch), options, (found,))


def _inputs(
    request: MarkerRequest, values: Values, paths: object
) -> tuple[Any, ...] | dict[str, Any]:
    """Return the arguments to call a model with: by name if `inputs` is a dict, or by position."""
    if isinstance(paths, str):
        return (follow_path(values, paths, "inputs=").value,)
    parts = [*paths.values()] if isinstance(paths, dict) else paths
    if isinstance(parts, list | tuple) and parts and all(isinstance(part, str) for part in parts):
        inputs = [follow_path(values, part, "inputs=").value for part in parts]
        return dict(zip(paths, inputs, strict=True)) if isinstance(paths, dict) else tuple(inputs)
    if paths is None and request.modules:
        raise GateError(_instead_of_positions(request, values))
    raise GateError(
        f"@pytest.mark.{request.name}(inputs=...) takes the name of a fixture or a dotted path "
        f"such as 'batch.images', several of them, or a dict of them by keyword; got "
        f"{describe(paths)}"
    )


def _instead_of_positions(request: MarkerRequest, values: Values) -> str:
    """Return how to write a marker whose model and inputs were given by position."""
    modules = [name for name in request.modules if _leads_to_a_module(values, name)]
    inputs = [name for name in request.modules if name not in modules]
    written = [f"model={name!r}" for name in modules[:1]]
    written.append(f"inputs={(inputs[0] if len(inputs) == 1 else inputs or 'x')!r}")
    return (
        f"@pytest.mark.{request.name} takes the inputs, and the model, by name; positional "
        "arguments are modules of the model: write "
        f"@pytest.mark.{request.name}({', '.join(written)})"
    )


def _leads_to_a_module(values: Values, path: object) -> bool:
    try:
        return isinstance(follow_path(values, str(path), "").value, nn.Module)
    except GateError:
        return False


def _with_two_models(request: MarkerRequest, values: Values) -> _Call:
    paths, names = request.modules[:2], request.modules[2:]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise GateError(
            f"@pytest.mark.{request.name} takes two models first, by the names of fixtures or "
            f"dotted paths, as in {request.name}('model', 'ema'), or one that must be the same on "
            f"all ranks; got {describe(paths)}"
        )
    found = tuple(find_model(values, path, "", option="") for path in paths)
    models = [each.model for each in found]
    return _Call((*models, *[None] * (2 - len(models)), *names), request.options, found)


_CALLS = {
    "model": _with_model,
    "model and arguments": _with_arguments,
    "model and batch": _with_batch,
    "two models": _with_two_models,
}
