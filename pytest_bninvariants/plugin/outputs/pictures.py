"""Put a broken guard's pictures into pytest-html's page, or say in the failure where they are."""

from __future__ import annotations

from collections.abc import Generator
from importlib import import_module
from pathlib import Path

import pytest

from pytest_bninvariants.plugin.outcomes.exceptions import verdicts_in
from pytest_bninvariants.reporting.page.document import document, history_section
from pytest_bninvariants.verdict import Verdict


class PictureNotes:
    """The hook that adds them to the report of the phase that failed.

    Args:
        folder: the folder of the report.
        plugins: the session's plugins.
    """

    def __init__(self, folder: Path, plugins: pytest.PytestPluginManager) -> None:
        self._page = folder / "index.html"
        self._plugins = plugins

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the pictures of the verdicts that failed a phase."""
        report = yield
        error = call.excinfo.value if call.excinfo else None
        pictured = [verdict for verdict in verdicts_in(error) if verdict.history is not None]
        if not pictured:
            return report
        if self._plugins.hasplugin("html"):
            extras = getattr(report, "extras", [])
            vars(report)["extras"] = [*extras, *map(_extra, pictured)]
        else:
            text = f"the pictures of this failure are in {self._page}"
            report.sections.append(("bn report", text))
        return report


def _extra(verdict: Verdict) -> dict[str, str | None]:
    """Return a verdict's pictures in the form of pytest-html's extras."""
    assert verdict.history is not None
    page = document(verdict.guard, history_section(verdict.history))
    frame = f'<iframe srcdoc="{_quoted(page)}" style="width: 100%; height: 32rem"></iframe>'
    made: dict[str, str | None] = import_module("pytest_html.extras").html(frame)
    return made


def _quoted(page: str) -> str:
    return page.replace("&", "&amp;").replace('"', "&quot;")
