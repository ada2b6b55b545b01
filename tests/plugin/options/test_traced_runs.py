"""`--bn-trace` beside fixtures, hooks, reruns, subtests and the debugger."""

from __future__ import annotations

import pytest

from tests.plugin.options.traces import DRIFT, TITLE, WRITER, said
from tests.plugin.sessions import Sessions

FIXTURES = """
    log = []

    def logged(name, scope):
        @pytest.fixture(scope=scope)
        def fixture():
            log.append(f"{name} up")
            yield
            log.append(f"{name} down")
        return fixture

    function, module = logged("function", "function"), logged("module", "module")
    session = logged("session", "session")

    @pytest.mark.frozen_bn
    def test_it(model, function, module, session):
        log.append("it")
        drift(model)
"""


def test_fixtures_are_set_up_for_each_run_and_wider_ones_stay(sessions: Sessions) -> None:
    session = sessions.run(
        FIXTURES
        + """
    def test_log(module, session):
        once = ["function up", "it", "function down"]
        assert log == ["session up", "module up", *once, *once]
    """,
        "--bn-trace",
    )
    assert session.outcomes == {"test_it": "failed", "test_log": "passed"}


def test_fixtures_of_a_modules_last_test_end_with_each_run(sessions: Sessions) -> None:
    sessions.pytester.makepyfile(
        test_later="""
        def test_log():
            from test_it import log
            once = ["module up", "function up", "it", "function down", "module down"]
            assert log == ["session up", *once, *once] or log[:1] != ["session up"]
            assert log.count("module up") == log.count("module down") == 2
        """
    )
    session = sessions.run(FIXTURES.replace(', "session")', ', "module")'), "--bn-trace")
    assert session.outcomes == {"test_it": "failed", "test_log": "passed"}


def test_hooks_hear_of_one_run(sessions: Sessions) -> None:
    conftest = (sessions.folder / "conftest.py").read_text()
    sessions.pytester.makeconftest(
        conftest
        + """
def pytest_runtest_logstart():
    with open("heard.txt", "a") as heard:
        print("start", file=heard)

def pytest_runtest_logfinish():
    with open("heard.txt", "a") as heard:
        print("finish", file=heard)
"""
    )
    sessions.run(DRIFT, "--bn-trace")
    assert (sessions.folder / "heard.txt").read_text().split() == ["start", "finish"]
    assert len((sessions.folder / "reports.jsonl").read_text().splitlines()) == 3


def test_stopping_at_the_first_failure_stops(sessions: Sessions) -> None:
    session = sessions.run(
        DRIFT + "\n    def test_after():\n        pass\n", "--bn-trace", "-x", exit_code=1
    )
    assert session.outcomes == {"test_it": "failed"}
    assert WRITER in said(session)


@pytest.mark.parametrize("options", [["-n2"], ["--tb=short"], ["--tb=line"], ["--tb=native"]])
@pytest.mark.parametrize("way", ["--bn-trace", "--bn-trace=same-run"])
def test_the_writer_is_told_with(sessions: Sessions, options: list[str], way: str) -> None:
    session = sessions.run(DRIFT, way, *options, alone="-n2" in options)
    assert session.outcomes == {"test_it": "failed"}
    assert WRITER in said(session)


def test_a_rerun_of_pytest_rerunfailures_is_traced_as_it_is(sessions: Sessions) -> None:
    session = sessions.run(
        """
        runs = []

        @pytest.mark.flaky(reruns=2)
        @pytest.mark.frozen_bn
        def test_it(kept):
            runs.append(1)
            (hold if len(runs) == 2 else drift)(kept)

        def test_runs():
            assert len(runs) == 3
    """,
        "--bn-trace",
    )
    assert session.outcomes == {"test_it": "failed", "test_runs": "passed"}
    assert WRITER in said(session)
    assert TITLE not in session.output


def test_the_second_run_compares_with_its_own_start(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        def test_it(kept):
            drift(kept)
    """,
        "--bn-trace",
    )
    assert WRITER in said(session)


def test_with_reruns_asked_for_in_the_ini_file_there_is_no_further_run(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nreruns = 1")
    session = sessions.run(
        """
        runs = []

        @pytest.mark.frozen_bn
        def test_it(model):
            runs.append(1)
            drift(model)

        def test_runs():
            assert len(runs) == 2
    """,
        "--bn-trace",
    )
    assert session.outcomes == {"test_it": "failed", "test_runs": "passed"}
    assert WRITER in said(session)


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="subtests came with pytest 9")
def test_a_test_with_subtests_is_not_run_again(sessions: Sessions) -> None:
    session = sessions.run(
        """
        runs = []

        @pytest.mark.frozen_bn
        def test_it(model, subtests):
            runs.append(1)
            with subtests.test("one"):
                pass
            drift(model)

        def test_runs():
            assert runs == [1]
    """,
        "--bn-trace",
    )
    assert session.outcomes == {"test_it": "failed", "test_runs": "passed"}
    assert "a test with subtests is not run again; --bn-trace=same-run" in said(session)


def test_an_audits_failure_has_no_second_run_and_a_guards_has(sessions: Sessions) -> None:
    session = sessions.run(
        """
        runs = []

        def test_leaks(model):
            runs.append(1)
            model.requires_grad_(False)
            drift(model)

        def test_runs():
            assert runs == [1]

        @pytest.mark.frozen_bn
        def test_it(model):
            drift(model)
    """,
        "--bn-trace",
        "--bn-audit=fail",
    )
    assert session.outcomes == {"test_leaks": "failed", "test_runs": "passed", "test_it": "failed"}
    assert TITLE not in session.texts["test_leaks"]
    assert WRITER in said(session)


def test_the_debugger_stops_once_and_what_it_shows_was_traced(sessions: Sessions) -> None:
    session = sessions.run(DRIFT, "--bn-trace", "--pdb", alone=True, stdin=b"c\n")
    assert session.output.count("entering PDB") == 1
    assert WRITER in said(session)


def test_the_option_takes_no_path_for_its_value(sessions: Sessions) -> None:
    session = sessions.run(DRIFT, "--bn-trace", "test_it.py")
    assert WRITER in said(session)


def test_an_unknown_value_is_an_error_of_usage(sessions: Sessions) -> None:
    (sessions.folder / "test_it.py").write_text("def test_it(): pass\n")
    result = sessions.bare("--bn-trace=twice", alone=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    error = result.stderr.str()
    assert error.strip() == "ERROR: --bn-trace=twice: expected rerun or same-run"


def test_without_the_option_nobody_is_told_of(sessions: Sessions) -> None:
    session = sessions.run(DRIFT)
    assert "who " not in session.texts["test_it"]
