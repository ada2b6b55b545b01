"""Who rejects a result: our bounds, assert_close, and assert_close as a project would loosen it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from tests.benchmarks.accuracy.comparisons import CORRECT, PLAIN, Comparison
from tests.benchmarks.accuracy.defects import DEFECTS

Check = Callable[[Comparison], bool]
Caught = dict[tuple[str, str], set[int]]


def checkers(compared: Iterable[Comparison]) -> dict[str, Check]:
    """Return what rejects a result, by name.

    The last multiplies assert_close's tolerances, for each precision and result, by the smallest
    factor with which it rejects no correct layer on these cases.
    """
    factor: dict[tuple[str, str], float] = defaultdict(lambda: 1.0)
    for each in compared:
        if each.layer in CORRECT:
            key = each.precision, each.result
            factor[key] = max(factor[key], each.close)
    return {
        "bounds": lambda each: each.bounds > 1,
        "assert_close": lambda each: each.close > 1,
        "loosened": lambda each: each.close > factor[each.precision, each.result],
    }


def caught(compared: Sequence[Comparison], check: Check) -> Caught:
    """Return the cases in which a check tells a defect, by precision and defect.

    It does where it rejects a result that it accepts from the same layer without the defect.
    """
    alarms = {each.where for each in compared if each.layer == PLAIN and check(each)}
    found: Caught = defaultdict(set)
    for each in compared:
        if each.layer in DEFECTS and each.where not in alarms and check(each):
            found[each.precision, each.layer].add(each.case)
    return found
