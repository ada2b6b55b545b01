"""Remember what only fingerprints told of: the next such guard keeps the bytes of these tensors.

So what is run again, as hypothesis does with an example that failed and `--bn-trace` with a test,
tells how far the values moved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import nn

from pytest_bninvariants.invariants.snapshot import Kept
from pytest_bninvariants.invariants.verdict import Change

_suspects: dict[tuple[str, str], frozenset[str]] = {}


def of(model: nn.Module, guard: str) -> Collection[str]:
    """Return the keys of tensors whose bytes a guard had better keep.

    Args:
        model: its model.
        guard: the guard as its user wrote it.
    """
    return _suspects.get(_kind(model, guard), ())


def add(model: nn.Module, guard: str, kept: Mapping[str, Kept], changes: Iterable[Change]) -> None:
    """Remember which of a guard's changes only fingerprints tell.

    Args:
        model: its model.
        guard: the guard as its user wrote it.
        kept: what it kept, by key.
        changes: what it found.
    """
    changed = {change.name for change in changes if not change.exact}
    found = [key for key, each in kept.items() if each.watched.name in changed]
    if found:
        _suspects[_kind(model, guard)] = frozenset(found)


def _kind(model: nn.Module, guard: str) -> tuple[str, str]:
    return f"{type(model).__module__}.{type(model).__qualname__}", guard
