"""The process of one rank: a pytest session that runs one test and sends its reports."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_bninvariants.plugin.ranks.member import RankMember
from pytest_bninvariants.plugin.ranks.request import RanksRequest
from pytest_bninvariants.ranks.environment import World
from pytest_bninvariants.ranks.messages import Line
from pytest_bninvariants.ranks.stacks import write_stacks_on_request
from pytest_bninvariants.ranks.supervision import stack_of

_SECONDS = 1800.0  # torch's own default; the parent's timeout comes first
_CHANGED_OPTIONS: dict[str, Any] = {
    # which tests run: the one that the parent names
    **{"keyword": "", "markexpr": "", "deselect": None, "ignore": None, "ignore_glob": None},
    **{"lf": False, "failedfirst": False, "newfirst": False, "stepwise": False},
    **{"stepwise_skip": False, "pyargs": False, "collectonly": False, "maxfail": 0},
    # where: in this process
    **{"numprocesses": None, "maxprocesses": None, "dist": "no", "distload": False, "tx": []},
    **{"looponfail": False, "usepdb": False, "trace": False},
    # what is written: nothing, since the parent reports
    **{"xmlpath": None, "log_file": os.devnull, "pastebin": None, "debug": None},
    **{"cov_source": [], "no_cov": True, "htmlpath": None, "report_log": None},
    **{"json_report": False, "allure_report_dir": None, "cacheclear": False},
}


def _change_options(options: Any) -> None:
    vars(options).update(
        {name: value for name, value in _CHANGED_OPTIONS.items() if hasattr(options, name)}
    )


def main(order: Mapping[str, Any]) -> None:
    """Run one test as one rank, and exit.

    Args:
        order: what the parent wants: `port`, `token`, `folder`, `cwd`, `args`, `plugins`, `nodeid`,
            `target`, `basetemp`.
    """
    rank, folder = int(os.environ["RANK"]), Path(order["folder"])
    line = Line(rank, order["port"], order["token"])
    write_stacks_on_request(stack_of(folder, rank))
    line.send("started", order["nodeid"])
    os.chdir(order["cwd"])
    for name in ("pytest_bninvariants", "pytest_bninvariants.plugin"):
        # or pytest warns that it cannot rewrite their asserts, of which there are none
        sys.modules[name].__doc__ = "PYTEST_DONT_REWRITE"
    member = SentRank(World(rank, int(os.environ["WORLD_SIZE"])), line, order)
    code = pytest.main(order["args"], [*order["plugins"], member])
    sys.exit(0 if member.has_ended else int(code) or 1)


class SentRank(RankMember):
    """The hooks of the session of one rank.

    Args:
        world: the ranks.
        line: the connection to the parent.
        order: what the parent wants; see `main`.
    """

    def __init__(self, world: World, line: Line, order: Mapping[str, Any]) -> None:
        super().__init__(world)
        self._line = line
        self._order = order
        self._config: pytest.Config | None = None
        self.has_ended = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self, early_config: pytest.Config) -> None:
        """Change the options before plugins read them early, as those for coverage do."""
        _change_options(early_config.known_args_namespace)

    @pytest.hookimpl(wrapper=True)
    def pytest_cmdline_parse(self) -> Generator[None, pytest.Config, pytest.Config]:
        """Change the options that are for the parent, and collect one test."""
        config = yield
        _change_options(config.option)
        config.option.basetemp = f"{self._order['basetemp']}/rank{self._world.rank}"
        config.args = [self._order["target"]]
        self._config = config
        return config

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Write nothing, neither to the terminal nor to the cache, which are the parent's."""
        config.pluginmanager.unregister(name="terminalreporter")
        quiet = pytest.TerminalReporter(config, io.StringIO())
        config.pluginmanager.register(quiet, "terminalreporter")
        cache: Any = getattr(config, "cache", None)
        if cache is not None:
            cache.set = lambda key, value: None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, items: list[pytest.Item]
    ) -> Generator[None, object, object]:
        """Select the test, whatever other plugins would."""
        ours = [item for item in items if item.nodeid == self._order["nodeid"]]
        result = yield
        items[:] = ours[:1]
        if not ours:
            self._line.send("refused", f"does not find {self._order['nodeid']}")
        return result

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Send what keeps the test from being collected."""
        if report.failed:
            text = report.longreprtext.rstrip()
            reason = text.rpartition("\n")[2].removeprefix("E ").strip()
            self._line.send("refused", f"cannot collect its test: {reason}\n\n{text}")

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Send what ended the session, such as `pytest.exit()`."""
        text = f"ended its session: {excinfo.typename} {excinfo.value}"
        self._line.send("refused", text.rstrip())

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send a report."""
        assert self._config is not None
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        if not report.passed or hasattr(report, "wasxfail"):
            word = "skipped" if report.skipped and not hasattr(report, "wasxfail") else "failed"
            self._line.send("trouble", f"{word} in its {report.when}")
        try:
            self._line.send("report", data)
        except Exception as error:
            self._line.send("refused", f"cannot send its report of {report.when}: {error}")

    def begin(self, request: RanksRequest) -> float:
        """Leave it to the parent to end the test: it comes first."""
        return max(_SECONDS, 2 * request.timeout)

    def joined(self) -> None:
        """Say that this rank and the others have found each other."""
        self._line.send("joined")

    def finish(self, item: pytest.Item) -> None:
        """Stay in the process group until this rank has said that its test has ended."""

    def pytest_sessionfinish(self) -> None:
        """Leave the process group once all ranks do; the parent limits how long that takes."""
        if self.membership is not None:
            self.membership.leave(_SECONDS)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, location: object
    ) -> None:
        """Send a warning of the test; those of the collection are the parent's, too."""
        if when != "runtest":
            return
        told = {name: getattr(warning_message, name) for name in ("filename", "lineno", "line")}
        category = warning_message.category
        told |= {"module": category.__module__, "name": category.__qualname__}
        self._line.send(
            "warning", {**told, "text": str(warning_message.message), "where": location}
        )

    def pytest_runtest_logfinish(self) -> None:
        """Say that the test has ended."""
        self._line.send("ended")
        self.has_ended = True
        assert self._config is not None
        self._config.pluginmanager.unregister(name="terminalreporter")  # nobody reads a summary
