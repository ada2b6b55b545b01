"""Run a marked test on ranks that this session starts, and report what they say."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.plugin.outcomes.raise_at_test import function_of, raise_at
from pytest_bninvariants.plugin.ranks.merged_reports import merge_reports
from pytest_bninvariants.plugin.ranks.request import (
    RAN_ELSEWHERE,
    RanksRequest,
    read_request,
    runs_on_ranks,
)

if TYPE_CHECKING:
    from pytest_bninvariants.ranks.supervision import RankRecord

_REPORTS = pytest.StashKey[dict[str, pytest.TestReport]]()


class RankLauncher:
    """The hooks of the session that starts ranks."""

    def __init__(self, items: list[pytest.Item]) -> None:
        for item in items:
            if runs_on_ranks(item):
                item.stash[RAN_ELSEWHERE] = True
                item.setup = partial(self._set_up, item)  # type: ignore[method-assign]
                item.runtest = _do_nothing  # type: ignore[method-assign]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Return the report that the ranks' reports make."""
        report = yield
        if RAN_ELSEWHERE in item.stash and call.excinfo is not None and _debugs(item.config):
            call.excinfo = None  # or pdb would stop where its use is refused
        reports = item.stash.get(_REPORTS, {})
        if call.when == "setup" and "setup" in reports:
            rest = sum(each.duration for phase, each in reports.items() if phase != "setup")
            reports["setup"].duration = max(call.duration - rest, 0.0)  # with the ranks' start
        return reports.get(call.when, report)

    def _set_up(self, item: Any) -> None:
        """Run the test, in the place of making its fixtures."""
        __tracebackhide__ = True
        item.stash[_REPORTS] = {}
        try:
            request = read_request(item)
            _refuse_debuggers(item.config, request)
        except GateError as error:
            raise_at(function_of(item), error, {})
        if not item.config.getoption("setupplan", False):
            item.stash[_REPORTS] = run_on_ranks(item, request)


def _do_nothing() -> None:
    """Stand in for the test: it ran on its ranks."""


def _debugs(config: pytest.Config) -> bool:
    return bool(config.getoption("usepdb", False) or config.getoption("trace", False))


def _refuse_debuggers(config: pytest.Config, request: RanksRequest) -> None:
    if _debugs(config):
        option = "--pdb" if config.getoption("usepdb", False) else "--trace"
        raise GateError(
            f"{request.written} under {option}: the ranks are other processes, which have no "
            f"terminal to debug in; leave out {option}"
        )


def run_on_ranks(item: pytest.Function, request: RanksRequest) -> dict[str, pytest.TestReport]:
    """Run a test on its ranks, and return its reports by phase."""
    from pytest_bninvariants.ranks.bootstrap import write_order
    from pytest_bninvariants.ranks.messages import Inbox
    from pytest_bninvariants.ranks.processes import RankProcesses
    from pytest_bninvariants.ranks.supervision import Supervisor

    with tempfile.TemporaryDirectory(prefix="ranks-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with Inbox() as inbox:
            arguments = write_order(folder, _order(item, folder, *inbox.address))
            processes = RankProcesses(request.size, arguments, name)
            try:
                watching = Supervisor(processes, inbox, request.size, request.timeout, folder)
                records = watching.watch()
            finally:
                processes.close()
        _hand_on_warnings(item, records)
        return merge_reports(item, records)


def _order(item: pytest.Function, folder: Path, port: int, token: str) -> dict[str, Any]:
    """Return what a rank needs to know; see `rank_main.main`."""
    invocation = item.config.invocation_params
    temporary = getattr(item.config, "_tmp_path_factory", None)
    return {
        "module": "pytest_bninvariants.plugin.ranks.rank_main",
        "port": port,
        "token": token,
        "folder": str(folder),
        "shows_output": item.config.getoption("capture", "fd") == "no",
        "sys_path": sys.path,
        "cwd": str(invocation.dir),
        "args": [str(argument) for argument in invocation.args],
        "plugins": [each for each in invocation.plugins or () if isinstance(each, str)],
        "nodeid": item.nodeid,
        "target": _target(item),
        "basetemp": str(temporary.mktemp("ranks") if temporary else folder),
    }


def _target(item: pytest.Function) -> str:
    """Return the argument that collects a test, with its other parameters."""
    names = [node.name for node in item.listchain() if isinstance(node, pytest.Class)]
    return "::".join([str(item.path), *names, item.originalname])


def _hand_on_warnings(item: pytest.Item, records: list[RankRecord]) -> None:
    """Tell this session of the ranks' warnings, of those that several ranks gave once."""
    told = set()
    for message in (each for record in records for each in record.messages):
        if message.kind != "warning":
            continue
        content = dict(message.content)
        text, where = content.pop("text"), content.pop("where")
        module = sys.modules.get(content.pop("module"))
        category = getattr(module, content.pop("name"), UserWarning)
        key = (text, category, content["filename"], content["lineno"])
        if key not in told:
            told.add(key)
            warning = warnings.WarningMessage(text, category, **content)
            item.ihook.pytest_warning_recorded.call_historic(
                kwargs={
                    "warning_message": warning,
                    "when": "runtest",
                    "nodeid": item.nodeid,
                    "location": where,
                }
            )
