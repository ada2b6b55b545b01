"""`--bn-trace` tells who wrote, and leaves every outcome as it is."""

from __future__ import annotations

import pytest

from tests.plugin.options.traces import DRIFT, TITLE, WRITER, said
from tests.plugin.sessions import Sessions

SPELLINGS = {
    "marker": DRIFT,
    "fixture": """
        def test_it(model, frozen_bn):
            with frozen_bn(model):
                drift(model)
    """,
    "plain": """
        from pytest_bninvariants import frozen_bn

        def test_it(model):
            with frozen_bn(model):
                drift(model)
    """,
    "async": """
        @pytest.mark.asyncio
        @pytest.mark.frozen_bn
        async def test_it(model):
            drift(model)
    """,
    "@given": """
        from hypothesis import given, settings, strategies as st

        @pytest.mark.frozen_bn
        @settings(database=None, deadline=None)
        @given(size=st.integers(2, 30))
        def test_it(kept, size):
            (drift if size > 5 else hold)(kept, size)
    """,
    "class": """
        @pytest.mark.frozen_bn
        class Test:
            def test_it(self, model):
                drift(model)
    """,
    "TestCase": """
        import unittest

        class Test(unittest.TestCase):
            def setUp(self):
                self.model = Net()

            @pytest.mark.frozen_bn
            def test_it(self):
                drift(self.model)
    """,
    "IsolatedAsyncioTestCase": """
        import unittest

        class Test(unittest.IsolatedAsyncioTestCase):
            def setUp(self):
                self.model = Net()

            @pytest.mark.frozen_bn
            async def test_it(self):
                drift(self.model)
    """,
    "class with @given": """
        from hypothesis import given, settings, strategies as st

        @pytest.mark.frozen_bn
        class Test:
            @settings(database=None, deadline=None)
            @given(size=st.integers(2, 30))
            def test_it(self, kept, size):
                drift(kept, size)
    """,
    "own exception": """
        @pytest.mark.frozen_bn
        def test_it(model):
            drift(model)
            raise ValueError("own")
    """,
    "generator fixture": """
        @pytest.fixture
        def guarded(model, frozen_bn):
            with frozen_bn(model):
                yield model

        def test_it(guarded):
            drift(guarded)
    """,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_second_run_names_the_writer(sessions: Sessions, spelling: str) -> None:
    bare = sessions.run(SPELLINGS[spelling])
    session = sessions.again("--bn-trace")
    assert (session.outcomes, session.summaries) == (bare.outcomes, bare.summaries)
    (name,) = session.texts
    assert session.texts[name].count(TITLE) == 1
    assert WRITER in said(session, name)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_same_run_can_be_traced(sessions: Sessions, spelling: str) -> None:
    session = sessions.run(SPELLINGS[spelling], "--bn-trace=same-run")
    (name,) = session.texts
    assert WRITER in said(session, name)
    assert "traced in this run, in which code compiled by torch.compile ran eagerly" in said(
        session, name
    )
    assert TITLE not in session.texts[name]


def test_the_first_run_is_not_traced_so_that_its_outcome_is_that_of_a_plain_run(
    sessions: Sessions,
) -> None:
    session = sessions.run(
        """
        modes = []

        @pytest.mark.frozen_bn
        def test_it(model):
            modes.append(torch._C._len_torch_dispatch_stack())
            drift(model)

        def test_runs():
            assert modes == [0, 1]
        """,
        "--bn-trace",
    )
    assert session.outcomes == {"test_it": "failed", "test_runs": "passed"}


def test_what_passes_or_fails_by_itself_runs_once(sessions: Sessions) -> None:
    session = sessions.run(
        """
        runs = []

        @pytest.mark.frozen_bn
        def test_holds(model):
            runs.append("holds")
            hold(model)

        @pytest.mark.frozen_bn
        def test_fails(model):
            runs.append("fails")
            hold(model)
            raise ValueError("own")

        @pytest.mark.xfail(strict=True)
        @pytest.mark.frozen_bn
        def test_expected(model):
            runs.append("expected")
            drift(model)

        def test_caught(model, frozen_bn):
            runs.append("caught")
            with pytest.raises(AssertionError), frozen_bn(model):
                drift(model)

        @pytest.mark.frozen_bn
        def test_skips(model):
            runs.append("skips")
            drift(model)
            pytest.skip("not here")

        @pytest.mark.frozen_bn
        def test_broken_gate():
            runs.append("gate")

        def test_runs():
            assert runs == ["holds", "fails", "expected", "caught", "skips"]
    """,
        "--bn-trace",
    )
    assert session.outcomes == {
        "test_holds": "passed",
        "test_fails": "failed",
        "test_expected": "xfailed",
        "test_caught": "passed",
        "test_skips": "skipped",
        "test_broken_gate": "failed",
        "test_runs": "passed",
    }
    assert TITLE not in session.output


def test_the_first_run_decides_whatever_the_second_does(sessions: Sessions) -> None:
    session = sessions.run(
        """
        import itertools

        runs = {name: itertools.count() for name in ("heals", "raises", "skips")}

        @pytest.mark.frozen_bn
        def test_heals(model):
            (hold if next(runs["heals"]) else drift)(model)

        @pytest.mark.frozen_bn
        def test_raises(model):
            if next(runs["raises"]):
                raise ValueError("only once")
            drift(model)

        @pytest.mark.frozen_bn
        def test_skips(model):
            if next(runs["skips"]):
                pytest.skip("only once")
            drift(model)
    """,
        "--bn-trace",
    )
    assert set(session.outcomes.values()) == {"failed"}
    for name in session.outcomes:
        session.names_a_violation(name)
        assert TITLE in session.texts[name]
    heals, raises, skips = (said(session, f"test_{n}") for n in ("heals", "raises", "skips"))
    assert (
        "the second run broke no guard, and passed; --bn-trace=same-run traces the first" in heals
    )
    assert "the second run broke no guard, and failed in its call: ValueError: only once" in raises
    assert "the second run broke no guard, and skipped in its call" in skips


def test_a_tensor_that_is_not_written_again_is_named(sessions: Sessions) -> None:
    session = sessions.run(
        """
        runs = []

        @pytest.mark.frozen_bn
        def test_it(model):
            runs.append(1)
            hold(model)
            model.bn2.running_mean.add_(1)
            if len(runs) == 1:
                model.bn1.running_var.add_(1)
    """,
        "--bn-trace",
    )
    text = said(session)
    assert "who aten.add_.Tensor wrote bn2.running_mean at test_it.py:" in text
    assert "not written again in the second run: bn1.running_var" in text


def test_a_tensor_that_was_replaced_is_said_to_be(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen
        def test_it(model):
            hold(model)
            model.fc.weight = torch.nn.Parameter(torch.ones_like(model.fc.weight))
            model.bn1._buffers["running_mean"] = torch.ones_like(model.bn1.running_mean)
    """,
        "--bn-trace",
    )
    text = said(session)
    assert "who Linear.weight = ... replaced fc.weight at test_it.py:" in text
    assert "who no operator of torch wrote bn1.running_mean: it is another tensor now" in text


def test_what_is_broken_by_no_write_is_not_run_again(sessions: Sessions) -> None:
    session = sessions.run(
        """
        runs = []

        @pytest.mark.trains
        def test_it(model):
            runs.append(1)
            hold(model)

        def test_runs():
            assert runs == [1]
    """,
        "--bn-trace",
    )
    assert session.outcomes == {"test_it": "failed", "test_runs": "passed"}
    assert TITLE not in session.texts["test_it"]


def test_who_wrote_an_average_is_told(sessions: Sessions) -> None:
    session = sessions.run(
        """
        import copy

        @pytest.mark.in_sync("model", "average", decay=0.99)
        def test_it(model, average):
            with torch.no_grad():
                for mine, other in zip(average.parameters(), model.parameters()):
                    mine.lerp_(other + 1, 0.5)

        @pytest.fixture
        def average(model):
            return copy.deepcopy(model)
    """,
        "--bn-trace",
    )
    assert "who aten.lerp_.Scalar wrote " in said(session).partition(TITLE)[2]
    assert "run this test with --bn-trace" not in said(session)


@pytest.mark.parametrize("option", ["--bn-trace", "--bn-trace=same-run"])
def test_who_changed_the_state_behind_an_output_is_told(sessions: Sessions, option: str) -> None:
    session = sessions.run(
        """
        @pytest.mark.same_output(inputs="x")
        def test_it(model, x):
            hold(model)
            with torch.no_grad():
                model.fc.weight.add_(1)

        @pytest.fixture
        def x():
            return batch()
    """,
        option,
    )
    assert "who aten.add_.Tensor wrote fc.weight at test_it.py:" in said(session)
    assert "run this test with --bn-trace" not in said(session)


def test_an_unseen_write_is_put_between_lines(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen
        def test_it(model):
            hold(model)
            model.bn1.running_mean.numpy().fill(3)
            hold(model)
    """,
        "--bn-trace",
    )
    text = said(session)
    assert (
        "who no operator of torch was seen to write bn1.running_mean: NumPy, another library, "
        "another thread or compiled code may have last seen unchanged after aten." in text
    )
    assert "first seen changed after aten." in text


def test_every_marker_of_a_test_is_told_of(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen("fc")
        @pytest.mark.frozen_bn("bn1")
        def test_it(model):
            drift(model)
            nudge(model)
    """,
        "--bn-trace",
    )
    told = said(session).partition(TITLE)[2]
    assert "frozen_bn('bn1'): who aten.native_batch_norm.default wrote bn1.running_mean" in told
    assert "frozen('fc'): who aten.add_.Tensor wrote fc.weight at nets.py:" in told


@pytest.mark.parametrize("option", ["--bn-trace", "--bn-trace=same-run"])
def test_what_was_traced_is_not_advised_to_be_traced(sessions: Sessions, option: str) -> None:
    source = """
        @pytest.mark.frozen("fc")
        def test_it(model):
            nudge(model)
    """
    advice = "run this test with --bn-trace"
    assert advice in sessions.run(source).says("test_it")
    session = sessions.again(option)
    assert advice not in session.output
    assert "aten.add_" in said(session)


@pytest.mark.parametrize("word", ["foo", "", "rerun,same-run"])
def test_a_wrong_way_to_trace_is_a_usage_error_that_lists_the_ways(
    sessions: Sessions, word: str
) -> None:
    sessions.pytester.makepyfile(test_it="def test_it(): pass")
    result = sessions.bare(f"--bn-trace={word}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--bn-trace={word}: expected rerun or same-run"])
