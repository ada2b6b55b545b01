"""What was asked for in this run; apart from what heeds it, so that asking imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

devices: tuple[str, ...] = ("cpu",)
"""What `--bn-device` says."""

bn_layer_types: frozenset[str] = frozenset()
"""Names of types that count as BN layers: `Class`, `pkg.module.Class` or `pkg.module:Class`."""

snapshot_budget: int | None = None
"""How many bytes a snapshot may keep on each device; None: a quarter of what is free there."""

trace: Trace | None = None
"""How guards trace their steps; None where they do not."""


class Trace:
    """How the guards that start now trace their steps.

    Args:
        names: the tensors whose writers are sought; None: those of all that is watched.
    """

    def __init__(self, names: frozenset[str] | None = None) -> None:
        self.names = names

    def seeks(self, name: str) -> bool:
        """Tell whether a tensor's writer is sought."""
        return self.names is None or name in self.names


def ask(**wishes: Any) -> Callable[[], None]:
    """Ask for something, by the names above; return what takes it back."""
    now = globals()
    before = {name: now[name] for name in wishes}
    now.update(wishes)
    return lambda: now.update(before)


@contextmanager
def asking(**wishes: Any) -> Iterator[None]:
    """Ask for something for a while."""
    take_back = ask(**wishes)
    try:
        yield
    finally:
        take_back()
