"""Guards that the pytest layer has yet to look at; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_bninvariants.invariants.guard import Guard

unreported: dict[int, str] = {}
"""By number, what to report of guards that were made and not entered yet, or that ended where
nobody received their verdict. The pytest layer fails the test that leaves any."""

entered: dict[int, Guard] = {}
"""By number, guards that were entered and have not ended. The pytest layer looks at them once the
test and its fixtures have ended."""
