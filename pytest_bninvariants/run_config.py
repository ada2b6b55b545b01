"""What this run was asked for; apart from what acts on it, so that reading it imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Trace:
    """How the guards that start now trace their steps.

    Args:
        names: the tensors whose writers are sought; None: those of all that is watched.
    """

    names: frozenset[str] | None = None

    def seeks(self, name: str) -> bool:
        """Tell whether a tensor's writer is sought."""
        return self.names is None or name in self.names


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What the engine is asked for.

    Args:
        devices: what `--bn-device` says.
        bn_layer_types: names of types that count as BN layers: `Class`, `pkg.module.Class` or
            `pkg.module:Class`.
        snapshot_budget: how many bytes a snapshot may keep on each device; None: a quarter of what
            is free there.
        trace: how guards trace their steps; None where they do not.
    """

    devices: tuple[str, ...] = ("cpu",)
    bn_layer_types: tuple[str, ...] = ()
    snapshot_budget: int | None = None
    trace: Trace | None = None


current = RunConfig()
"""Read it as `run_config.current.trace`: it is another object in each run."""


@contextmanager
def active(config: RunConfig) -> Iterator[None]:
    """Make a configuration the current one for a while."""
    global current
    before, current = current, config
    try:
        yield
    finally:
        current = before


@contextmanager
def replaced(**changes: Any) -> Iterator[None]:
    """Replace some values of the current configuration for a while."""
    with active(replace(current, **changes)):
        yield
