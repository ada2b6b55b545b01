"""Ranks beside other options and plugins, in all kinds of tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.plugin.sessions import Session, Sessions

Run = Callable[..., Session]


def test_kinds_of_tests(run: Run) -> None:
    session = run(
        """
        import unittest

        @ranks
        class TestCase(unittest.TestCase):
            def setUp(self):
                self.rank = rank()

            def test_holds(self):
                self.assertEqual(distributed.get_world_size(), 2)

            def test_fails_on_one(self):
                self.assertEqual(self.rank, 0)

            @unittest.expectedFailure
            def test_fails_as_expected_on_one(self):
                self.assertEqual(self.rank, 0)

        @ranks
        @pytest.mark.asyncio
        async def test_async():
            assert rank() == 0

        @ranks
        @pytest.mark.parametrize("name", ["a::b", "[x]", "a/b c"])
        class TestNames:
            def test_name(self, name):
                assert (":" in name) + ("[" in name) + ("/" in name) == 1
        """
    )
    assert session.outcomes == {
        "TestCase::test_holds": "passed",
        "TestCase::test_fails_on_one": "failed",
        "TestCase::test_fails_as_expected_on_one": "xfailed",
        "test_async": "failed",
        "TestNames::test_name[a::b]": "passed",
        "TestNames::test_name[[x]]": "passed",
        "TestNames::test_name[a/b c]": "passed",
    }


FLAKY = """
    @ranks
    def test_holds(request):
        assert not hasattr(request.config, "workerinput")
        meet()

    @ranks
    def test_flaky(tmp_path):
        first = tmp_path.parents[2] / "first"
        meet()
        if rank() == 1 and not first.exists():
            first.touch()
            raise ValueError("the first time")

    @ranks
    def test_fails():
        assert rank() == 0

    def test_plain():
        assert not distributed.is_initialized()
"""


@pytest.mark.parametrize("options", [["--reruns=1"], ["-n2", "--reruns=1"]], ids=["alone", "xdist"])
def test_reruns_and_xdist_run_all_ranks_again(run: Run, options: list[str]) -> None:
    session = run(FLAKY, *options, "--basetemp=temporary")
    assert session.outcomes == {
        "test_holds": "passed",
        "test_flaky": "passed",
        "test_fails": "failed",
        "test_plain": "passed",
    }
    assert "2 rerun" in session.output


@pytest.mark.parametrize(
    "options",
    [
        ["-k", "holds and not other", "-m", "ranks", "-v", "--setup-show", "-s", "--durations=3"],
        ["--deselect=test_it.py::test_other_fails", "--last-failed", "--maxfail=1", "--tb=line"],
        ["--import-mode=importlib", "-W", "error", "--log-file=log", "-x"],
    ],
    ids=["selection", "cache", "strict"],
)
def test_options_of_the_session_do_not_disturb_its_ranks(
    run: Run, sessions: Sessions, options: list[str]
) -> None:
    sessions.caches = True
    session = run(
        """
        @ranks
        def test_holds():
            meet()

        def test_other_fails():
            raise AssertionError
        """,
        *options,
        *(["--deselect=test_it.py::test_other_fails"] if "-x" in options else []),
    )
    assert session.outcomes == {"test_holds": "passed"}


def test_what_other_options_print_and_ranks_print_is_seen_under_s(run: Run) -> None:
    session = run(
        """
        @ranks
        def test_holds():
            os.write(1, b"from rank %d, on its own line\\n" % rank())
        """,
        "-s",
        alone=True,
    )
    for number in (0, 1):
        assert f"from rank {number}, on its own line" in session.output


def test_subtests_are_told_by_rank(run: Run) -> None:
    pytest.importorskip("pytest", "9.0", reason="it has no subtests")
    session = run(
        """
        @ranks
        def test_parts(subtests):
            for number in range(2):
                with subtests.test(number=number):
                    assert number < 1 or rank() == 0
        """,
        exit_code=1,
    )
    assert "rank 1: assert (1 < 1 or 1 == 0)" in session.output


def test_the_tests_device_chooses_the_backend(run: Run) -> None:
    session = run(
        """
        @ranks
        def test_on_device(bn_device):
            assert distributed.get_backend() == "gloo"
            assert os.environ["OMP_NUM_THREADS"] == "1"

        @pytest.mark.ranks(1, backend="cpu:gloo")
        def test_alone():
            assert distributed.get_world_size() == 1
        """,
        "--bn-device=cpu",
    )
    assert session.outcomes == {"test_on_device[cpu]": "passed", "test_alone": "passed"}
