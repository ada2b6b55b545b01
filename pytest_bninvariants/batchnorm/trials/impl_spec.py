"""Read a value of `--bn-impl`: the path of a class, with arguments and a rank."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from typing import Any

from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest

SPELLING = (
    "MODULE:CLASS, MODULE:CLASS(name=literal, ...), each with [declared=literal, ...] or without, "
    "and with @0d, @1d, @2d, @3d or @nd or without"
)


def parse_impl(spec: str, device: str = "cpu") -> LayerUnderTest:
    """Return the layer under test that a text names.

    Args:
        spec: a text in the form of `SPELLING`.
        device: where to try out ranks if the text gives none.

    Raises:
        ValueError: if the text cannot be read, or what it names does not exist.
    """
    match = re.fullmatch(r"([\w.]+):([\w.]+)(\(.*\))?(\[.*\])?(?:@(\w+))?", spec, re.DOTALL)
    if match is None:
        raise ValueError(f"cannot be read{_suggest_a_colon(spec)}; accepted: {SPELLING}")
    module, path, arguments, declared, rank = match.groups()
    try:
        target: Any = import_module(module)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(f"importing {module} fails: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(target, part):
            raise ValueError(f"{module} has no {path}")
        target = getattr(target, part)
    try:
        return LayerUnderTest.from_factory(
            target,
            rank=rank,
            keywords=_keywords(arguments),
            declared=_keywords(f"({declared[1:-1]})" if declared else None),
            device=device,
        )
    except TypeError as error:
        raise ValueError(str(error)) from None


def _suggest_a_colon(spec: str) -> str:
    """Return advice for a path with a dot in place of the colon; empty for others."""
    path = re.match(r"([\w.]+)\.(\w+)(?![\w.:])", spec)
    return f": write {path[1]}:{path[2]}" if path else ""


def _keywords(arguments: str | None) -> dict[str, Any]:
    """Return keyword arguments from their text; literals only, nothing is evaluated."""
    if not arguments:
        return {}
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body
    except SyntaxError:
        call = None
    names = [each.arg for each in getattr(call, "keywords", ())]
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or _has_repeats(names):
        raise ValueError(f"{arguments}: these are not keyword arguments")
    if call.args or None in names:
        raise ValueError(f"{arguments}: give arguments by name")
    try:
        return {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    except ValueError:
        message = f"{arguments}: arguments must be literals, such as False or 0.1"
        raise ValueError(message) from None


def _has_repeats(names: list[str | None]) -> bool:
    return len(set(names)) < len(names)
