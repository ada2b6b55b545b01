"""Lines of the terminal's summary about the tests of laws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

_PAGE = 50  # lines of reports that are shown of a layer; the simplest law's is shown whole
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


@contextmanager
def shorten_failures(reporter: pytest.TerminalReporter) -> Iterator[None]:
    """Show at most a page of reports of each layer's broken laws, and name the other laws after it.

    One cause breaks many laws. With `-v` all reports are shown.
    """
    failed = reporter.stats.get("failed", [])
    broken = defaultdict[str, list[tuple[str, pytest.TestReport]]](list)
    for report in failed:
        layer, law = dict(report.user_properties).get("bn_broken", (None, None))
        if layer is not None:
            broken[layer].append((law, report))
    if not broken or reporter.config.get_verbosity() > 0:
        yield
        return
    shown = {layer: _first_page(reports) for layer, reports in broken.items()}
    hidden = {id(report) for layer in broken for _, report in broken[layer][len(shown[layer]) :]}
    reporter.stats["failed"] = [report for report in failed if id(report) not in hidden]
    try:
        yield
    finally:
        reporter.stats["failed"] = failed
    for layer, reports in broken.items():
        for line in _rest_lines(layer, reports, len(shown[layer])):
            reporter.write_line(line)


def _first_page(reports: list[tuple[str, pytest.TestReport]]) -> list[pytest.TestReport]:
    """Sort reports, the simplest law first, and return those that fit on a page."""
    from pytest_bninvariants.batchnorm.laws import choose_laws

    order = [law.name for law in choose_laws(["*"])]
    reports.sort(key=lambda each: order.index(each[0]))
    shown: list[pytest.TestReport] = []
    lines = 0
    for _, report in reports:
        lines += report.longreprtext.count("\n") + 1
        if shown and lines > _PAGE:
            break
        shown.append(report)
    return shown


def _rest_lines(
    layer: str, reports: list[tuple[str, pytest.TestReport]], shown: int
) -> Iterator[str]:
    """Yield a line that names the laws whose reports are not shown; none if all are."""
    laws = list(dict.fromkeys(law for law, _ in reports))
    rest = list(dict.fromkeys(law for law, _ in reports[shown:]))
    if rest:
        yield (
            f"bn conformance: {layer} breaks {len(laws)} laws, of which the simplest is shown; "
            f"-v shows also {', '.join(rest)}"
        )
