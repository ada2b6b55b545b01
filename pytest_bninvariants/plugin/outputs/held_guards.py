"""`-v`: say of each guard that held what it has watched."""

from __future__ import annotations

import pytest

from pytest_bninvariants.plugin.outputs.run_record import RunRecord
from pytest_bninvariants.reporting.lines import wrap
from pytest_bninvariants.reporting.verdict_data import verdict_from_data


class HeldGuards:
    """The hook that lists them, once all tests have run.

    Args:
        record: what was found.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record = record

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """List the guards that held, by test."""
        lines: list[str] = []
        for test in self._record.tests:
            held = [each["verdict"] for each in test.verdicts if each["verdict"]["holds"]]
            lines += [test.test] if held else []
            for verdict in held:
                said = " ".join(str(verdict_from_data(verdict)).split())
                lines += wrap(said, first="  ", rest="    ")
        if lines:
            terminalreporter.section("bn guards that held")
        for line in lines:
            terminalreporter.line(line)
