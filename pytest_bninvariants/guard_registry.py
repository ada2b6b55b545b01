"""Guards that the pytest layer has yet to check, in a module that imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_bninvariants.invariants.guard import Guard

complaints: dict[int, str] = {}
"""Complaints about guards that were not entered yet, or whose verdict nobody received, by the
guards' numbers. The pytest layer fails a test that leaves any."""

open_guards: dict[int, Guard] = {}
"""Guards that were entered and have not ended, by their numbers. The pytest layer checks them after
the test and its fixtures have ended."""
