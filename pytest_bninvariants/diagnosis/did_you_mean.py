"""Suggest what a mistyped option, or a mistyped name in a model, may have meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase

_SHOWN = 3
_FOR_MODULES = re.compile(r"(sub)?modules?|layers?|names?|patterns?")


def did_you_mean_option(option: str, accepted: Iterable[str]) -> str:
    """Return the end of a sentence that suggests another option; nothing if none is near."""
    near = get_close_matches(option, list(accepted), n=1)
    return f"; did you mean {near[0]}=?" if near else ""


def by_position(option: str, value: object, call: str, accepted: Iterable[str]) -> str:
    """Return the end of a sentence for an option that was to name modules; empty for others.

    Args:
        option: the option, which is not accepted.
        value: its value.
        call: how the call is written up to the names.
        accepted: the options that are.
    """
    if option in accepted or not _FOR_MODULES.fullmatch(option):
        return ""
    given = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    names = [repr(name) for name in given if isinstance(name, str)] or ["'backbone'"]
    return f"; give modules by position: {call}{', '.join(names)})"


def did_you_mean_name(pattern: str, modules: Iterable[str], tensors: Iterable[str] = ()) -> str:
    """Return the end of a sentence that suggests other names in a model; nothing if none is near.

    Args:
        pattern: the pattern that matches nothing.
        modules: names of modules; those of their parents count, too.
        tensors: names of tensors.
    """
    known = {name: None for full in modules for name in _with_parents(full)}
    parent = pattern.rpartition(".")[0]
    siblings = [name for name in tensors if name.rpartition(".")[0] == parent]
    parts = [part for part in re.split(r"[,;\s]+", pattern) if part]
    if len(parts) > 1 and all(_matches_any(part, [*known, *tensors]) for part in parts):
        return f"; pass names one by one: {', '.join(map(repr, parts))}"
    near = _near(pattern, {**known, **dict.fromkeys(siblings)})
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _matches_any(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _near(pattern: str, known: dict[str, None]) -> list[str]:
    """Return names like a pattern: with more parents, with fewer parents, or spelled similarly."""
    by_lower_case = {name.lower(): name for name in reversed(known)}
    longer = [name for name in known if name.endswith(f".{pattern}")]
    shorter = [name for name in _without_parents(pattern) if name in known]
    close = get_close_matches(pattern.lower(), by_lower_case, n=_SHOWN, cutoff=0.7)
    similar = [by_lower_case[name] for name in close]
    return list(dict.fromkeys([*longer, *shorter, *similar]))[:_SHOWN]


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _without_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts)):
        yield ".".join(parts[count:])
