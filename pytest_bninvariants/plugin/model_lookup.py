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


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model, and the way to it.

    Args:
        model: the model.
        source: where it was found, e.g. `fixture 'model'`.
        path: the path that leads to it.
        option: the option with the path, for an error; empty for a positional argument.
    """

    model: nn.Module
    source: str
    path: str
    option: str

    def led_elsewhere(self, values: Mapping[str, TestValue]) -> str:
        """Return what is wrong if the path leads to another model now; empty if it does not.

        A wrapper around the model, or a part of it, is not another one.
        """
        try:
            now = follow_path(values, self.path, self.option).value
        except GateError:
            return ""
        if not isinstance(now, nn.Module) or _contains(now, self.model):
            return ""
        if _contains(self.model, now):
            return ""
        return (
            f"{self.option}{self.path!r} led to one {type(self.model).__name__} when the test "
            f"began, and leads to another {type(now).__name__} now, which was not watched: keep "
            "one model throughout the test, or put a `with` around the step that runs the new one"
        )


def find_model(
    values: Mapping[str, TestValue], path: str | None, usage: str, option: str = "model="
) -> FoundModel:
    """Return the model and the way to it.

    Args:
        values: the test's values by name; a path begins with such a name.
        path: a name, or a dotted path from one; None for the only model of the test.
        usage: how a test that has no model calls the invariant itself, for an error.
        option: the option with the path, for an error; empty for a positional argument.

    Raises:
        GateError: if there is no model, or several, or the path leads nowhere.
    """
    if path is not None:
        return _follow(values, path, option)
    modules = {name: v for name, v in values.items() if isinstance(v.value, nn.Module)}
    with_tensors = {name: v for name, v in modules.items() if _has_tensors(v.value)}
    candidates = _outermost(
        with_tensors or {name: v for name, v in modules.items() if _has_state(v.value)}
    )
    if len(candidates) == 1:
        ((name, only),) = candidates.items()
        return FoundModel(only.value, only.source, name, option)
    if candidates:
        listed = ", ".join(f"{n!r} ({type(v.value).__name__})" for n, v in candidates.items())
        first = next(iter(candidates))
        raise GateError(
            f"the test has {len(candidates)} models: {listed}; say which one with model={first!r}"
        )
    raise GateError(_none_found(values, usage))


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in all_tensors(module))


def _has_state(module: nn.Module) -> bool:
    """Tell whether a module has any state; a quantised one keeps it in packed parameters."""
    try:
        return _has_tensors(module) or bool(module.state_dict())
    except Exception:  # a state_dict of the user's own, which may do anything
        return False


def _contains(module: nn.Module, part: nn.Module) -> bool:
    return any(each is part for _, each in named_modules(module))


def _outermost(candidates: Mapping[str, TestValue]) -> dict[str, TestValue]:
    """Leave out modules that are part of another candidate, and second names of one module."""
    below = {id(part) for v in candidates.values() for name, part in named_modules(v.value) if name}
    outermost: dict[int, tuple[str, TestValue]] = {}
    for name, value in candidates.items():
        if id(value.value) not in below:
            outermost.setdefault(id(value.value), (name, value))
    return dict(outermost.values())


def _follow(values: Mapping[str, TestValue], path: str, option: str) -> FoundModel:
    target = follow_path(values, path, option)
    if not isinstance(target.value, nn.Module):
        first = path if path in values else path.split(".")[0]
        hint = _hint({first: values[first]}, option) if first in values else ""
        raise GateError(
            f"{option}{path!r} is not a torch.nn.Module but {describe(target.value)}{hint}"
        )
    return FoundModel(target.value, target.source, path, option)


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


def _none_found(values: Mapping[str, TestValue], usage: str) -> str:
    hint = _hint(values, "model=")
    if hint:
        return f"no fixture of the test is a model{hint}"
    listed = ", ".join(
        f"{name} ({type(v.value).__name__})" for name, v in values.items() if v.requested
    )
    fixtures = f"its fixtures are {listed}" if listed else "it takes no fixtures"
    return (
        f"the test has no model fixture ({fixtures}); add one, or use the fixture of the same "
        f"name in the test's body: {usage}"
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
