"""Measure the bounds beside torch.testing.assert_close: false alarms, and defects that are caught.

Run as `python -m tests.benchmarks.accuracy.bounds`; docs/bounds-measured.md says what the tables
show.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tests.benchmarks.accuracy.checkers import Check, caught, checkers
from tests.benchmarks.accuracy.comparisons import (
    CORRECT,
    PRECISIONS,
    RESULTS,
    WELL_CONDITIONED,
    Comparison,
    comparisons,
)
from tests.benchmarks.accuracy.defects import DEFECTS
from tests.benchmarks.markdown import table

CASES = 300  # of each precision
RUN = 100  # cases that a run of a law takes
Compared = Sequence[Comparison]


def tables(compared: Compared) -> str:
    """Return all tables."""
    return "\n\n".join(make(compared) for make in (summary, false_alarms, defects))


def summary(compared: Compared) -> str:
    """Return how many false alarms there are and how many defects are caught, by checker."""
    head = [f"of {len(DEFECTS)} defects, caught in {RUN} cases", *_precisions(compared)]
    head += ["false alarms per 1000", "correct layers rejected"]
    lines = [
        [name, *_defects_caught(compared, check), *_alarms(compared, check)]
        for name, check in checkers(compared).items()
    ]
    return table(head, lines)


def _defects_caught(compared: Compared, check: Check) -> list[str]:
    """Return how many defects a run catches, for each precision."""
    found = caught(compared, check)
    seen = {key for key, cases in found.items() if min(cases) < RUN}
    return [str(sum((each, d) in seen for d in DEFECTS)) for each in _precisions(compared)]


def _alarms(compared: Compared, check: Check) -> list[str]:
    """Return the false alarms in 1000 comparisons, and how many correct layers a run rejects."""
    correct = [each for each in compared if each.layer in CORRECT]
    alarms = [each for each in correct if check(each)]
    rejected = {(each.precision, each.layer) for each in alarms if each.case < RUN}
    layers = len(CORRECT) * len(_precisions(compared))
    return [f"{1000 * len(alarms) / len(correct):.1f}", f"{len(rejected)} of {layers}"]


def false_alarms(compared: Compared) -> str:
    """Return the shares of correct results that are rejected, by precision and conditioning."""
    head = ["false alarms of assert_close, %", "cases", *RESULTS]
    lines = []
    for precision in _precisions(compared):
        correct = [e for e in compared if e.precision == precision and e.layer in CORRECT]
        for sign, well in (("<=", True), (">", False)):
            group = [each for each in correct if each.well == well]
            if group:
                name = f"{precision}, kappa {sign} {WELL_CONDITIONED:g}"
                lines.append([name, *_of_assert_close(group), *_of_bounds(group)])
    return table([*head, "of bounds", "largest error / bound", "no bound, %"], lines)


def _of_assert_close(correct: Compared) -> list[str]:
    by_result = ([each.close > 1 for each in correct if each.result == name] for name in RESULTS)
    return [str(len({each.case for each in correct})), *map(_percent, by_result)]


def _of_bounds(correct: Compared) -> list[str]:
    return [
        f"{sum(each.bounds > 1 for each in correct)} of {len(correct)}",
        f"{max(each.bounds for each in correct):.2f}",
        _percent([each.unbounded for each in correct]),
    ]


def defects(compared: Compared) -> str:
    """Return the shares of cases in which each defect is caught, by each checker."""
    found = {name: caught(compared, check) for name, check in checkers(compared).items()}
    count = {
        precision: len({each.case for each in compared if each.precision == precision})
        for precision in _precisions(compared)
    }
    lines = [
        [defect]
        + [
            " / ".join(f"{100 * len(cases[precision, defect]) / n:.0f}" for cases in found.values())
            for precision, n in count.items()
        ]
        for defect in DEFECTS
    ]
    return table([f"caught by {' / '.join(found)}, %", *count], lines)


def _precisions(compared: Compared) -> list[str]:
    present = {each.precision for each in compared}
    return [name for name in PRECISIONS if name in present]


def _percent(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}"


def main() -> None:
    """Print all tables."""
    torch.set_num_threads(1)  # small tensors are slower with more
    print(tables(list(comparisons(PRECISIONS, CASES))))


if __name__ == "__main__":
    main()
