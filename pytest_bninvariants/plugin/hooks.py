"""pytest's hooks, and nothing else.

Hooks import what only they need, so that pytest starts fast.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from typing import Any

import pytest

from pytest_bninvariants import guard_registry, run_config
from pytest_bninvariants.plugin import fixtures, markers
from pytest_bninvariants.plugin.option_declarations import add_options
from pytest_bninvariants.plugin.options import SETTINGS, may_run_again, parse_settings
from pytest_bninvariants.plugin.outputs import hookspecs
from pytest_bninvariants.plugin.outputs.registration import register_outputs
from pytest_bninvariants.plugin.ranks.request import RAN_ELSEWHERE, runs_on_ranks
from pytest_bninvariants.ranks.environment import launched_world

__all__: tuple[str, ...] = ()
_OPEN = pytest.StashKey[set[int]]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    config = pluginmanager.get_plugin("pytestconfig")
    add_options(parser, config.invocation_params.args if config else ())


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(fixtures, fixtures.__name__)  # `pytest_plugins` takes longer
    for line in markers.help_lines():
        config.addinivalue_line("markers", line)
    settings = config.stash[SETTINGS] = parse_settings(config)
    until_unconfigured = ExitStack()
    until_unconfigured.enter_context(run_config.activate(settings.run))
    until_unconfigured.enter_context(guard_registry.collect_findings())
    config.add_cleanup(until_unconfigured.close)
    world, is_sent = launched_world(), False
    if world is not None:
        from pytest_bninvariants.plugin.ranks.under_launcher import configure_launched

        is_sent = configure_launched(config, world)
    register_outputs(config, is_sent=is_sent)
    if config.getoption("tbstyle") == "line":
        from pytest_bninvariants.plugin.outcomes.reports import OneLinePerFailure

        config.pluginmanager.register(OneLinePerFailure(), "bninvariants-one-line-per-failure")
    if settings.bn_trace == "rerun":
        from pytest_bninvariants.plugin.trace_rerun import TraceRerunner

        config.pluginmanager.register(TraceRerunner(), "bninvariants-trace-rerunner")
    if settings.bn_list:
        from pytest_bninvariants.plugin.listing.watch_list import register_watch_list

        register_watch_list(config)
    elif settings.bn_audit:
        from pytest_bninvariants.plugin.audit.audit_hooks import register_audit

        register_audit(config, settings)
    if settings.run.bn_layer_types:
        from pytest_bninvariants.plugin.layer_type_hooks import register_layer_types

        register_layer_types(config, settings.run.bn_layer_types, audits=bool(settings.bn_audit))
    if settings.kit_options:
        from pytest_bninvariants.plugin import conformance_plan

        conformance_plan.make_plan(config)  # so that usage errors come before the session


def pytest_report_header(config: pytest.Config) -> str:
    from pytest_bninvariants.plugin.outputs.header import header_line

    return header_line(config.stash[SETTINGS])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "bn_device" in metafunc.fixturenames and _may_parametrize("bn_device", metafunc):
        names = metafunc.config.stash[SETTINGS].run.devices
        metafunc.parametrize("bn_device", names, indirect=True, scope="session")


@pytest.hookimpl(tryfirst=True)  # before -k and the like deselect tests
def pytest_collection_modifyitems(config: pytest.Config) -> None:
    if config.stash[SETTINGS].kit_options:
        from pytest_bninvariants.plugin import conformance_plan

        conformance_plan.require_kit_tests(config)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.stash[SETTINGS].bn_list or launched_world() is not None:
        return
    if any(map(runs_on_ranks, session.items)):
        from pytest_bninvariants.plugin.ranks.launcher import RankLauncher

        plugins = session.config.pluginmanager
        plugins.register(RankLauncher(session.items), "bninvariants-rank-launcher")


def _may_parametrize(fixture: str, metafunc: pytest.Metafunc) -> bool:
    """Tell whether a fixture is ours, and not overridden or parametrized by the test."""
    definitions = metafunc._arg2fixturedefs.get(fixture, ())
    if not definitions or definitions[-1].func.__module__ != fixtures.__name__:
        return False
    marks = metafunc.definition.iter_markers("parametrize")
    argnames = (mark.args[0] for mark in marks if mark.args)
    lists = (names.split(",") if isinstance(names, str) else names for names in argnames)
    return not any(fixture in [name.strip() for name in names] for names in lists)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    if not may_run_again(item.config):
        return (yield)
    from pytest_bninvariants.invariants.frozen import earlier_runs

    with earlier_runs.remembering(earlier_runs.EarlierRuns()):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    guard_registry.complaints.clear()
    guard_registry.take_verdicts()  # of guards that no test had


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    __tracebackhide__ = True
    if RAN_ELSEWHERE in item.stash or item.config.stash[SETTINGS].bn_list:
        return (yield)
    from pytest_bninvariants.invariants.frozen import earlier_runs
    from pytest_bninvariants.plugin.outcomes import reports, unjudged_guards

    item.stash[_OPEN] = set(guard_registry.open_guards)
    if earlier_runs.active is not None:
        earlier_runs.active.begin_run()
    if hasattr(item, "addExpectedFailure"):
        reports.never_expect_gate_errors(item)
    unjudged_guards.refuse_wrong_marks(item)
    marks = markers.guard_marks(item)
    try:
        if marks:
            from pytest_bninvariants.plugin.guarded_call import around_call

            result = yield from around_call(item, marks)
        else:
            result = yield
    except BaseException as error:
        unjudged_guards.let_own_failure_win(item, error)
        raise
    unjudged_guards.fail_unless_judged(item, marks)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    __tracebackhide__ = True
    from pytest_bninvariants.plugin.outcomes import lost_findings, unjudged_guards

    try:
        result = yield
    except BaseException as error:
        unjudged_guards.let_own_failure_win(item, error)
        raise
    if _OPEN in item.stash:
        unjudged_guards.fail_if_left_open(item, item.stash[_OPEN])
    else:  # its call never ran
        lost_findings.take_lost(item)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    from pytest_bninvariants.plugin.outcomes import exceptions, lost_findings, reports
    from pytest_bninvariants.plugin.outcomes.health_checks import explain_health_check
    from pytest_bninvariants.plugin.outputs import verdict_log

    verdict_log.hand_out_verdicts(item, call)
    explain_health_check(item, call)
    lost_findings.drop_reported(item, call.excinfo.value if call.excinfo else None)
    exceptions.make_presentable(item, call, verbose=item.config.get_verbosity() > 0)
    report = yield
    error = call.excinfo.value if call.excinfo else None
    not_expected = exceptions.gate_error_in(error) or verdict_log.hook_error_of(item, error)
    if not_expected is not None:
        reports.report_as_failed(item, report, not_expected)
    reports.strip_prefix(report)
    verdict_log.add_to_report(item, report, exceptions.verdicts_in(error))
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    if not (terminalreporter.getreports("passed") or terminalreporter.getreports("failed")):
        return (yield)
    from pytest_bninvariants.plugin import conformance_summary

    with conformance_summary.shorten_failures(terminalreporter):
        yield
    for line in conformance_summary.summary_lines(terminalreporter.getreports("passed")):
        terminalreporter.write_line(line)
