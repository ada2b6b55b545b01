"""Other options, ini keys and plugins beside this one."""

from __future__ import annotations

import pytest

from tests.plugin.sessions import Sessions

BOTH = """
    @pytest.mark.frozen_bn
    def test_holds(model):
        hold(model)

    @pytest.mark.frozen("fc", "bn1")
    def test_drifts(model):
        drift(model)

    def test_holds_in_a_block(model, frozen_bn):
        with frozen_bn(model):
            hold(model)

    def test_drifts_in_a_block(model, frozen):
        with frozen(model):
            drift(model)
"""

OPTIONS = {
    "--strict-markers": ["--strict-markers"],
    "--strict-config": ["--strict-config"],
    "--import-mode=importlib": ["--import-mode=importlib"],
    "--import-mode=append": ["--import-mode=append"],
    "--assert=plain": ["--assert=plain"],
    "-W error": ["-W", "error"],
    "-s": ["-s"],
    "-q": ["-q"],
    "without xdist": ["-p", "no:xdist"],
    "without unittest": ["-p", "no:unittest"],
    "without warnings": ["-p", "no:warnings"],
    "without logging": ["-p", "no:logging"],
    "without other plugins": [
        *("-p", "no:xdist", "-p", "no:asyncio", "-p", "no:anyio", "-p", "no:rerunfailures"),
        *("-p", "no:hypothesispytest"),
    ],
}


@pytest.mark.parametrize("options", OPTIONS)
def test_markers_and_fixtures_work_with(sessions: Sessions, options: str) -> None:
    sessions.run(BOTH, *OPTIONS[options]).tells_apart()


def test_markers_work_where_all_warnings_are_errors_by_ini(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-markers")
    sessions.run(BOTH).tells_apart()


def test_a_strict_project_needs_no_more_configuration(sessions: Sessions) -> None:
    sessions.pytester.makeini(
        "[pytest]\nfilterwarnings = error\naddopts = --strict-markers --strict-config\n"
    )
    session = sessions.run(BOTH, "--import-mode=importlib", alone=True)
    session.tells_apart()
    assert "warning" not in session.lines[-1]


@pytest.mark.parametrize("expectation", ["", "@pytest.mark.xfail"])
def test_a_guard_never_entered_fails_where_all_warnings_are_errors(
    sessions: Sessions, expectation: str
) -> None:
    session = sessions.run(
        f"""
        {expectation}
        def test_it(model, frozen_bn):
            frozen_bn(model)

        def test_after(model):
            pass
    """,
        "-Werror",
    )
    assert session.outcomes == {"test_it": "failed", "test_after": "passed"}
    assert "was never entered" in session.first_line("test_it")


def test_switched_off_its_markers_and_fixtures_are_unknown(sessions: Sessions) -> None:
    off = ["-p", "no:bninvariants"]
    session = sessions.run(BOTH, *off, alone=True)  # pytest remembers markers within a process
    assert session.outcomes == {
        "test_holds": "passed",
        "test_drifts": "passed",
        "test_holds_in_a_block": "error",
        "test_drifts_in_a_block": "error",
    }
    assert "PytestUnknownMarkWarning: Unknown pytest.mark.frozen_bn" in session.output
    sessions.pytester.makepyfile(test_it="import pytest\npytestmark = pytest.mark.frozen_bn")
    sessions.pytester.makeconftest("")
    strict = sessions.bare(*off, "--strict-markers", alone=True)
    assert strict.ret == pytest.ExitCode.INTERRUPTED
    assert "'frozen_bn' not found in `markers` configuration option" in strict.stdout.str()


def test_switched_off_the_guards_still_work_by_import(sessions: Sessions) -> None:
    session = sessions.run(
        """
        from pytest_bninvariants import frozen_bn

        def test_holds(model):
            with frozen_bn(model):
                hold(model)

        def test_drifts(model):
            with frozen_bn(model):
                drift(model)
    """,
        "-p",
        "no:bninvariants",
    )
    assert session.outcomes == {"test_holds": "passed", "test_drifts": "failed"}
    assert "2 of 2 frozen BN layers changed: bn1, bn2" in session.texts["test_drifts"]


def test_two_sessions_in_one_process_do_not_disturb_each_other(sessions: Sessions) -> None:
    sessions.run(BOTH).tells_apart()
    sessions.again().tells_apart()


def test_a_session_inside_a_guarded_test_is_judged_by_itself(sessions: Sessions) -> None:
    sessions.pytester.makeconftest(
        "pytest_plugins = ['pytester']\n" + (sessions.folder / "conftest.py").read_text()
    )
    session = sessions.run(
        """
        INNER = '''
        import pytest
        from nets import Net, drift

        @pytest.mark.frozen_bn
        @pytest.mark.parametrize("net", [Net()])
        def test_inner(net):
            drift(net)
        '''

        @pytest.mark.frozen_bn
        def test_holds(model, pytester):
            pytester.makepyfile(INNER)
            result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
            result.assert_outcomes(failed=1)
            hold(model)

        @pytest.mark.frozen_bn
        def test_drifts(model, pytester):
            pytester.makepyfile(INNER)
            pytester.runpytest_inprocess("-p", "no:cacheprovider")
            drift(model)
    """,
        "--show-capture=no",
    )
    session.tells_apart()


def test_a_doctest_is_left_alone(sessions: Sessions) -> None:
    (sessions.folder / "test_doc.txt").write_text(">>> 1 + 1\n2\n>>> 1 + 1\n3\n")
    result = sessions.bare("--doctest-glob=*.txt", "test_doc.txt")
    result.assert_outcomes(failed=1)
    assert "INTERNALERROR" not in result.stdout.str()


def test_items_of_other_kinds_are_left_alone_and_may_be_marked(sessions: Sessions) -> None:
    sessions.pytester.makeconftest("""
        import pytest

        class Item(pytest.Item):
            def runtest(self):
                if self.name == "broken":
                    raise ValueError("own")

        class File(pytest.File):
            def collect(self):
                for name in ("plain", "broken", "marked"):
                    yield Item.from_parent(self, name=name)

        def pytest_collect_file(file_path, parent):
            if file_path.suffix == ".steps":
                return File.from_parent(parent, path=file_path)

        def pytest_itemcollected(item):
            if item.name == "marked":
                item.add_marker(pytest.mark.frozen_bn)
    """)
    (sessions.folder / "some.steps").touch()
    result = sessions.bare("some.steps")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*the test has no model*"])
    assert "INTERNALERROR" not in result.stdout.str()
