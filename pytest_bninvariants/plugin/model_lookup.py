"""Find the model that a marker names among a test's values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from torch import nn

from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.selection.walk import all_tensors, named_modules


@dataclass(frozen=True, slots=True)
class TestValue:
    """A value of a test: a fixture, an argument or an attribute of its instance.

    Args:
        source: where it comes from, e.g. `fixture 'model'`.
        value: the value itself.
        requested: whether the test requested it by name, and not only through other fixtures.
    """

    source: str
    value: Any
    requested: bool = True


def find_model(
    values: Mapping[str, TestValue], path: str | None, option: str = "model="
) -> tuple[nn.Module, str]:
    """Return the model and where it was found.

    Args:
        values: the test's values by name; a path begins with such a name.
        path: a name, or a dotted path from one; None for the only model of the test.
        option: the option with the path, for an error; empty for a positional argument.

    Raises:
        GateError: if there is no model, or several, or the path leads nowhere.
    """
    if path is not None:
        return _follow(values, path, option)
    candidates = _outermost(
        {
            name: v
            for name, v in values.items()
            if isinstance(v.value, nn.Module) and _has_state(v.value)
        }
    )
    if len(candidates) == 1:
        ((_, only),) = candidates.items()
        return only.value, only.source
    if candidates:
        listed = ", ".join(f"{n!r} ({type(v.value).__name__})" for n, v in candidates.items())
        first = next(iter(candidates))
        raise GateError(
            f"the test has {len(candidates)} models: {listed}; say which one with model={first!r}"
        )
    raise GateError(_none_found(values))


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in all_tensors(module))


def _outermost(candidates: Mapping[str, TestValue]) -> dict[str, TestValue]:
    """Leave out modules that are part of another candidate, and second names of one module."""
    below = {id(part) for v in candidates.values() for name, part in named_modules(v.value) if name}
    outermost: dict[int, tuple[str, TestValue]] = {}
    for name, value in candidates.items():
        if id(value.value) not in below:
            outermost.setdefault(id(value.value), (name, value))
    return dict(outermost.values())


def _follow(values: Mapping[str, TestValue], path: str, option: str) -> tuple[nn.Module, str]:
    target = follow_path(values, path, option)
    if not isinstance(target.value, nn.Module):
        first = path if path in values else path.split(".")[0]
        hint = _hint({first: values[first]}, option) if first in values else ""
        raise GateError(
            f"{option}{path!r} is not a torch.nn.Module but {describe(target.value)}{hint}"
        )
    return target.value, target.source


def follow_path(values: Mapping[str, TestValue], path: str, option: str) -> TestValue:
    """Return the value that a path leads to.

    Args:
        values: the test's values by name; a path begins with such a name.
        path: a name, or a dotted path from one.
        option: the option with the path, for an error: `inputs=`, or as in `find_model`.

    Raises:
        GateError: if the path leads nowhere.
    """
    first, *rest = path.split(".")
    if first == "self" and rest:
        first, rest = f"self.{rest[0]}", rest[1:]
    elif first not in values and f"self.{first}" in values:
        first = f"self.{first}"
    if first not in values:
        listed = ", ".join(repr(name) for name, v in values.items() if v.requested)
        fixtures = f"its fixtures are {listed}" if listed else "it takes no fixtures"
        raise GateError(f"{option}{path!r}: the test has no fixture {first!r}; {fixtures}")
    value = values[first].value
    for number, part in enumerate(rest):
        try:
            value = _step(value, part)
        except (AttributeError, LookupError, ValueError):
            so_far = ".".join([first, *rest[:number]])
            hint = "" if option == "inputs=" else _hint({first: values[first]}, option)
            raise GateError(
                f"{option}{path!r}: {so_far!r} is a {type(value).__name__} and has no {part!r}"
                f"{hint}"
            ) from None
    return TestValue(values[first].source if not rest else f"{path!r}", value)


def _step(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value[part]
    if isinstance(value, Sequence) and part.isdigit():
        return value[int(part)]
    return getattr(value, part)


def _none_found(values: Mapping[str, TestValue]) -> str:
    hint = _hint(values, "model=")
    if hint:
        return f"no fixture of the test is a model{hint}"
    listed = ", ".join(
        f"{name} ({type(v.value).__name__})" for name, v in values.items() if v.requested
    )
    fixtures = f"its fixtures are {listed}" if listed else "it takes no fixtures"
    return (
        f"the test has no model fixture ({fixtures}); add one, or use the fixture `frozen_bn` or "
        "`frozen` around the train step: with frozen_bn(model): ..."
    )


def _hint(values: Mapping[str, TestValue], option: str) -> str:
    """Suggest paths that lead to modules; empty if there are none."""
    paths = [f"{name}.{part}" for name, v in values.items() for part in _modules_in(v.value)]
    if not paths:
        return ""
    return "; say " + " or ".join(f"{option}{path!r}" for path in paths[:4])


def _modules_in(value: object) -> Iterator[str]:
    if isinstance(value, nn.Module):
        parts: Any = ()
    elif isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        fields = getattr(value, "_fields", range(len(value)))
        parts = zip(fields, value, strict=True)
    else:
        parts = getattr(value, "__dict__", {}).items()
    for name, part in parts:
        if isinstance(part, nn.Module) and _has_state(part):
            yield str(name)


def collect_values(item: pytest.Item, arguments: Mapping[str, Any]) -> dict[str, TestValue]:
    """Return a test's values by name: its fixtures, its arguments, its instance's attributes."""
    fixtures = getattr(item, "funcargs", None) or {}
    requested = getattr(getattr(item, "_fixtureinfo", None), "argnames", fixtures)
    values = {
        n: TestValue(f"fixture {n!r}", value, n in requested) for n, value in fixtures.items()
    }
    for name, value in arguments.items():
        values.setdefault(name, TestValue(f"argument {name!r}", value))
    instance = getattr(item, "instance", None)
    for owner in () if instance is None else (instance, *type(instance).__mro__):
        for name, value in getattr(owner, "__dict__", {}).items():
            values.setdefault(f"self.{name}", TestValue(f"self.{name}", value, requested=False))
    return values
