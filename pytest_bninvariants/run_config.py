"""The options of the run that the engine reads, in a module that imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Trace:
    """What guards trace during their steps.

    Args:
        names: the tensors whose writers are sought; None: all watched tensors.
    """

    names: frozenset[str] | None = None

    def seeks(self, name: str) -> bool:
        """Tell whether a tensor's writer is sought."""
        return self.names is None or name in self.names


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The options that the engine reads.

    Args:
        devices: the devices that `--bn-device` names.
        bn_layer_types: names of types that count as BN layers: `Class`, `pkg.module.Class` or
            `pkg.module:Class`.
        snapshot_budget: how many bytes a snapshot may keep on each device; None: a quarter of the
            free ones.
        trace: what guards trace; None: nothing.
        histories: of which guards the steps of statistics are kept: none, those that are broken, or
            all.
        traces: whether `--bn-trace` is on, which traces this run or a second one of the test.
    """

    devices: tuple[str, ...] = ("cpu",)
    bn_layer_types: tuple[str, ...] = ()
    snapshot_budget: int | None = None
    trace: Trace | None = None
    histories: Literal["none", "broken", "all"] = "none"
    traces: bool = False

    @property
    def is_reported(self) -> bool:
        """Tell whether the run writes a report, for which more is kept and measured."""
        return self.histories != "none"


current = RunConfig()
"""Read it through the module, as in `run_config.current.trace`, since `activate` rebinds it."""


@contextmanager
def activate(config: RunConfig) -> Iterator[None]:
    """Make a configuration the current one for a while."""
    global current
    before, current = current, config
    try:
        yield
    finally:
        current = before


@contextmanager
def override(**changes: Any) -> Iterator[None]:
    """Override some options of the current configuration for a while."""
    with activate(replace(current, **changes)):
        yield
