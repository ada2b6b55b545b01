"""Whether guards trace their steps; the pytest layer asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """How the guards that start now trace their steps.

    Args:
        names: the tensors whose writers are sought; None: those of all that is watched.
    """

    names: frozenset[str] | None = None

    def seeks(self, name: str) -> bool:
        """Tell whether a tensor's writer is sought."""
        return self.names is None or name in self.names


active: Trace | None = None
"""What is asked for at the moment; None where guards are not to trace."""


def use(trace: Trace | None) -> Callable[[], None]:
    """Have guards trace, or not, and return what puts back what was asked for before."""
    global active
    before, active = active, trace

    def put_back() -> None:
        global active
        active = before

    return put_back


@contextmanager
def asked_for(trace: Trace | None) -> Iterator[None]:
    """Have guards trace, or not, for a while."""
    put_back = use(trace)
    try:
        yield
    finally:
        put_back()
