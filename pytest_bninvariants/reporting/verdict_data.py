"""Turn a verdict into plain JSON types, by a schema that docs/verdict.md documents."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

from pytest_bninvariants.reporting.verdict_text import text_of
from pytest_bninvariants.verdict import Verdict

SCHEMA = 1
"""Its number grows when a key goes or changes its meaning; new keys leave it as it is."""


def as_data(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as dicts, lists, strings, numbers, bools and None.

    All of it is valid JSON, whatever the names in it: halves of surrogate pairs, which no encoding
    can write, are escaped, and a number that is not finite is the string `inf` or `nan`.
    """
    return {
        "schema": SCHEMA,
        "holds": verdict.holds,
        "headline": text_of(verdict).partition("\n")[0],
        **_plain(verdict),
        "changed_layers": _plain(verdict.changed_layers),
        "changed_tensors": _plain(verdict.changed_tensors),
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
