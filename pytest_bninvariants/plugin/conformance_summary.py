"""Lines of the terminal's summary about the tests of laws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

_NOTABLE = 0.1  # of a law's comparisons; the drawn data give a few in a hundred


@dataclass(slots=True)
class _LawTally:
    """The sums of what tests of laws have recorded.

    Args:
        checks: how many tests passed: a law, on a layer, in a dtype, on a device.
        examples: on how many cases.
        ill_posed: how many comparisons could not be made.
        posed: how many comparisons were made.
    """

    checks: int = 0
    examples: int = 0
    ill_posed: float = 0
    posed: float = 0

    @property
    def share(self) -> float:
        """Return how much of the comparisons was ill-posed."""
        return self.ill_posed / (self.ill_posed + self.posed or 1)

    def add(self, recorded: dict[str, Any]) -> None:
        """Count a test that passed."""
        self.checks += 1
        self.examples += recorded["bn_examples"]
        ill_posed, posed = recorded["bn_ill_posed"]
        self.ill_posed += ill_posed
        self.posed += posed


def summary_lines(passed: Iterable[pytest.TestReport]) -> Iterator[str]:
    """Yield the lines about tests of laws; none if no such test passed.

    Args:
        passed: the reports of all tests that passed; under xdist the workers send them.
    """
    whole, laws = _LawTally(), defaultdict[object, _LawTally](_LawTally)
    for report in passed:
        recorded = dict(report.user_properties)
        if "bn_law" in recorded:
            whole.add(recorded)
            laws[recorded["bn_law"]].add(recorded)
    if whole.checks:
        checks = "1 check" if whole.checks == 1 else f"{whole.checks} checks"
        yield (
            f"bn conformance: {checks} held on {whole.examples:,} cases; "
            f"{whole.share:.1%} of comparisons ill-posed"
        )
    notable = [f"{name} {law.share:.0%}" for name, law in laws.items() if law.share > _NOTABLE]
    if notable:
        yield f"bn conformance: notably ill-posed: {', '.join(sorted(notable))}"
