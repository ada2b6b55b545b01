"""What was asked for in this run; apart from what heeds it, so that asking imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Trace(NamedTuple):
    """How the guards that start now trace their steps.

    Args:
        names: the tensors whose writers are sought; None: those of all that is watched.
    """

    names: frozenset[str] | None = None

    def seeks(self, name: str) -> bool:
        """Tell whether a tensor's writer is sought."""
        return self.names is None or name in self.names


class Asked(NamedTuple):
    """What may be asked for.

    Args:
        devices: what `--bn-device` says.
        bn_layer_types: names of types that count as BN layers: `Class`, `pkg.module.Class` or
            `pkg.module:Class`.
        snapshot_budget: how many bytes a snapshot may keep on each device; None: a quarter of what
            is free there.
        trace: how guards trace; None where they do not.
    """

    devices: tuple[str, ...] = ("cpu",)
    bn_layer_types: frozenset[str] = frozenset()
    snapshot_budget: int | None = None
    trace: Trace | None = None


now = Asked()
"""What is asked for at the moment."""


def ask(**wishes: Any) -> Callable[[], None]:
    """Ask for something, by the names of `Asked`; return what takes it back."""
    global now
    before = {name: getattr(now, name) for name in wishes}
    now = now._replace(**wishes)

    def take_back() -> None:
        global now
        now = now._replace(**before)

    return take_back


@contextmanager
def asking(**wishes: Any) -> Iterator[None]:
    """Ask for something for a while."""
    take_back = ask(**wishes)
    try:
        yield
    finally:
        take_back()
