"""`--bn-list` says what guarded tests watch, and runs none of them."""

from __future__ import annotations

import pytest

from tests.plugin.sessions import Session, Sessions

MARKED = """
    @pytest.fixture
    def frozen_net():
        net = Net().requires_grad_(False)
        net.bn1.train()
        return net

    @pytest.fixture
    def optimizer(frozen_net):
        return torch.optim.SGD(frozen_net.requires_grad_(True).fc.parameters(), lr=0.1)

    @pytest.mark.frozen_bn
    def test_layers(frozen_net):
        assert False, "the body ran"

    @pytest.mark.frozen_bn("bn2", trains="fc")
    def test_trains(frozen_net, optimizer):
        assert False, "the body ran"

    @pytest.mark.bn_updates("bn1")
    async def test_async(frozen_net):
        assert False, "the body ran"

    def test_fixture(model, frozen_bn):
        assert False, "the body ran"

    def test_of_nothing(model):
        assert False, "the body ran"
"""


def listed(session: Session) -> dict[str, str]:
    """Return what the section says of each test."""
    start = next(i for i, line in enumerate(session.lines) if " bn list " in line)
    told: dict[str, str] = {}
    for line in session.lines[start + 1 :]:
        if line.startswith("="):
            break
        if line.startswith("test_it.py::"):
            test = line.removeprefix("test_it.py::")
            told[test] = ""
        else:
            told[test] += f" {line.strip()}"
    return told


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_each_guarded_test_is_listed_and_none_runs(
    sessions: Sessions, workers: tuple[str, ...]
) -> None:
    session = sessions.run(MARKED, "--bn-list", *workers, exit_code=0, alone=bool(workers))
    assert set(session.outcomes.values()) == {"skipped"}
    told = listed(session)
    assert set(told) == {"test_layers", "test_trains", "test_async", "test_fixture"}
    assert told["test_layers"] == (
        " frozen_bn() on Net (fixture 'frozen_net'): watches 2 layers"
        " updates its statistics, though frozen: bn1 stays as it is: bn2"
    )
    assert (
        "trains('fc') on Net (fixture 'frozen_net'): watches 1 layer trains: fc"
        in (told["test_trains"])
    )
    assert (
        "lacks an optimizer for its weight and bias, and keeps its statistics: bn2"
        in (told["test_trains"])
    )
    assert "bn_updates('bn1') on Net" in told["test_async"]
    assert "used as a fixture" in told["test_fixture"]


def test_a_guard_with_nothing_to_watch_fails_as_it_would_in_a_run(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn("bn3")
        def test_typo(model):
            pass

        @pytest.mark.frozen_bn
        def test_without_model():
            pass

        @pytest.mark.frozenbn
        def test_unknown(model):
            pass
        """,
        "--bn-list",
    )
    assert set(session.outcomes.values()) == {"failed"}
    assert "'bn3' matches nothing in the model" in session.says("test_typo")
    assert "the test has no model fixture" in session.says("test_without_model")
    assert "guards anything" not in session.output
    assert "the marker is called @pytest.mark.frozen_bn" in session.says("test_unknown")


def test_test_cases_are_listed_after_their_set_up(sessions: Sessions) -> None:
    session = sessions.run(
        """
        import unittest

        @pytest.mark.frozen_bn
        class TestNet(unittest.TestCase):
            def setUp(self):
                self.net = Net()

            def test_step(self):
                assert False, "the body ran"

        @pytest.mark.frozen_bn
        class TestAsync(unittest.IsolatedAsyncioTestCase):
            def setUp(self):
                self.net = Net()

            async def test_step(self):
                assert False, "the body ran"
        """,
        "--bn-list",
        exit_code=0,
    )
    told = listed(session)
    assert set(session.outcomes.values()) == {"skipped"}
    for test in ("TestNet::test_step", "TestAsync::test_step"):
        assert "frozen_bn() on Net (self.net): watches 2 layers" in told[test]


def test_a_model_that_given_draws_is_no_error(sessions: Sessions) -> None:
    session = sessions.run(
        """
        from hypothesis import given, strategies as st

        @pytest.mark.frozen_bn
        @given(net=st.builds(Net))
        def test_drawn(net):
            assert False, "the body ran"
        """,
        "--bn-list",
        exit_code=0,
    )
    assert "or @given draws it" in listed(session)["test_drawn"]


def test_ranks_are_not_started(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.ranks(2)
        @pytest.mark.frozen_bn
        def test_ranks(model):
            assert False, "the body ran"
        """,
        "--bn-list",
        exit_code=0,
    )
    assert "which --bn-list does not start" in listed(session)["test_ranks"]


def test_a_session_that_guards_nothing_says_so(sessions: Sessions) -> None:
    sessions.pytester.makepyfile(test_it="def test_plain(): pass")
    result = sessions.bare("--bn-list")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["no test that was selected guards anything"])


def test_expressions_choose_among_the_tests(sessions: Sessions) -> None:
    session = sessions.run(MARKED, "--bn-list", "-k", "layers", exit_code=0)
    assert set(listed(session)) == {"test_layers"}


def test_nothing_is_left_behind_for_tests_that_judge_outputs(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.fixture
        def x():
            return batch()

        @pytest.mark.same_output(inputs="x")
        def test_output(model, x):
            assert False, "the body ran"

        @pytest.mark.in_sync("model", "kept")
        def test_pair(model, kept):
            assert False, "the body ran"
        """,
        "--bn-list",
        exit_code=0,
    )
    told = listed(session)
    assert told["test_output"] == " same_output() on Net (fixture 'model')"
    assert told["test_pair"] == " in_sync() on Net (fixture 'model' and fixture 'kept')"
