"""`--bn-list`: say for each guarded test what is watched, and run no test's body."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from pytest_bninvariants.catalogue import INVARIANTS
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.plugin import markers
from pytest_bninvariants.plugin.ranks.request import runs_on_ranks

_LINES = pytest.StashKey[list[str]]()
_NOT_RUN = "--bn-list runs no test"


class _WatchLister:
    """The hooks that list what the tests of a session watch."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    @pytest.hookimpl(trylast=True)  # after -k and the like
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out tests that guard nothing: their fixtures need not be made."""
        others = [item for item in items if not _guards(item)]
        if others:
            items[:] = [item for item in items if _guards(item)]
            config.hook.pytest_deselected(items=others)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if runs_on_ranks(item):
            item.stash[_LINES] = ["  runs on ranks of its own, which --bn-list does not start"]
            pytest.skip(_NOT_RUN)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        if type(item).__name__ == "TestCaseFunction":  # its setUp runs in the call
            item.instance._callTestMethod = lambda _: _list(item)  # type: ignore[attr-defined]

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> None:
        __tracebackhide__ = True
        _list(pyfuncitem)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        lines = item.stash.get(_LINES, None)
        if lines is not None:
            del item.stash[_LINES]
            vars(report)["bn_list"] = lines  # plain data, which reports take across xdist
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        lines = getattr(report, "bn_list", None)
        if lines is not None:
            self._lines[report.nodeid] = lines

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("bn list")
        for test, lines in self._lines.items():
            for line in (test, *lines):
                terminalreporter.line(line)
        if not (self._lines or terminalreporter.stats.keys() & {"failed", "error"}):
            terminalreporter.line("no test that was selected guards anything")


def _guards(item: pytest.Item) -> bool:
    """Tell whether a test has a marker that guards, or means to, or takes a fixture of ours."""
    marked = markers.guard_marks(item) or any(True for _ in markers.wrong_marks(item))
    return bool(marked) or bool(_fixtures_of(item))


def _fixtures_of(item: pytest.Item) -> list[str]:
    return [name for name in getattr(item, "fixturenames", ()) if name in INVARIANTS]


def _list(item: pytest.Item) -> None:
    """Keep what a test watches for its report, and skip it in place of its body."""
    __tracebackhide__ = True
    from pytest_bninvariants.plugin.outcomes.raise_at_test import function_of, raise_at
    from pytest_bninvariants.plugin.outcomes.unjudged_guards import refuse_wrong_marks

    refuse_wrong_marks(item)
    try:
        item.stash[_LINES] = [*_marked(item), *_unmarked(item)]
    except GateError as error:
        raise_at(function_of(item), error, getattr(item, "funcargs", None) or {})
    raise_at(function_of(item), pytest.skip.Exception(_NOT_RUN), {})


def _marked(item: pytest.Item) -> Iterator[str]:
    """Yield what the guards of a test's markers watch.

    Raises:
        GateError: if one finds no model, or nothing to watch.
    """
    marks = markers.guard_marks(item)
    if marks:
        from pytest_bninvariants.plugin.listing.watched_layers import watched_by

        for mark in marks:
            yield from watched_by(item, mark)


def _unmarked(item: pytest.Item) -> Iterator[str]:
    for name in _fixtures_of(item):
        yield f"  {name} is used as a fixture: see the test's body for what it watches"


def register_watch_list(config: pytest.Config) -> None:
    """List what the tests of a session watch, and run none."""
    config.pluginmanager.register(_WatchLister(), "bn-list")
