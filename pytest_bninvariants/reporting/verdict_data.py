"""Turn a verdict into plain JSON types, by a schema that docs/verdict.md documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pytest_bninvariants.reporting.verdict_text import news
from pytest_bninvariants.verdict import Cause, Change, Hazard, Place, Verdict, Write

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
        "headline": news(verdict),
        **_plain(verdict),
        "changed_layers": _plain(verdict.changed_layers),
        "changed_tensors": _plain(verdict.changed_tensors),
    }


def verdict_from_data(data: Mapping[str, Any]) -> Verdict:
    """Rebuild a verdict from what `as_data` returns, also after a passage through JSON."""
    return Verdict(
        guard=data["guard"],
        noun=data["noun"],
        model=data["model"],
        source=data["source"],
        layers=data["layers"],
        tensors=data["tensors"],
        changes=tuple(_change(each) for each in data["changes"]),
        causes=tuple(cause_from_data(each) for each in data["causes"]),
        hazards=tuple(Hazard(**each) for each in data["hazards"]),
        writes=None if data["writes"] is None else tuple(map(_write, data["writes"])),
        notes=tuple(data["notes"]),
        broke=data["broke"],
        column=data["column"],
    )


def cause_from_data(data: Mapping[str, Any]) -> Cause:
    """Rebuild a cause from its plain data."""
    lists = {name: tuple(data[name]) for name in ("layers", "tensors")}
    return Cause(**{**data, **lists, "place": _place(data["place"])})


def _change(data: Mapping[str, Any]) -> Change:
    drift = data["drift"]
    return Change(**{**data, "drift": None if drift is None else float(drift)})


def _write(data: Mapping[str, Any]) -> Write:
    first, last = data["between"]
    between = _place(first), _place(last)
    return Write(**{**data, "place": _place(data["place"]), "between": between})


def _place(data: Mapping[str, Any] | None) -> Place | None:
    return None if data is None else Place(**data)


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
