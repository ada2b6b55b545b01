"""`--bn-audit` on whole sessions: what it tells, what it fails, and that it finds it anywhere."""

from __future__ import annotations

import re

import pytest

from pytest_bninvariants.reporting.doc_links import cause_link
from tests.plugin.audit.audit_summary import summary_of
from tests.plugin.sessions import NETS, Sessions

FREEZE = """
@pytest.fixture
def frozen_net():
    net = Net()
    net.bn1.requires_grad_(False)
    return net

"""

SUITE = """
    @pytest.mark.parametrize("number", range(5))
    def test_drifts(frozen_net, number):
        drift(frozen_net)

    def test_drifts_alone(frozen_net):
        drift(frozen_net)

    def test_holds(frozen_net):
        hold(frozen_net)

    def test_holds_while_it_trains():
        drift(Net())
"""


def test_the_summary_gives_layers_tests_cause_place_and_fix(sessions: Sessions) -> None:
    session = sessions.run(SUITE, "--bn-audit", before=FREEZE)
    assert set(session.outcomes.values()) == {"passed"}
    line = NETS.splitlines().index("    model.train()")
    assert summary_of(session) == (
        "Net: 1 frozen BN layer moved: bn1 "
        "in test_it.py::test_drifts[0], test_it.py::test_drifts[1], "
        "test_it.py::test_drifts[2] and 3 more "
        "why mode-flip: bn1 (BatchNorm1d) was in eval, then put in training mode, and normalised "
        f"1 batch with batch statistics, first at nets.py:{line + 1} in drift; "
        "requires_grad=False does not stop running statistics "
        f"put in training mode by Net.train(True) at nets.py:{line} in drift "
        "fix call .eval() on bn1 after every model.train(), or override train() on the model "
        f"more {cause_link('mode-flip')} "
        'once mended, these markers keep it so: @pytest.mark.frozen_bn("bn1") '
        "bn audit: 8 tests; 16 BN layers ran in 8 of them, 14 in training mode, 6 of these frozen; "
        "found frozen-moved in 6 tests"
    )


def test_verbosely_all_tests_are_named(sessions: Sessions) -> None:
    session = sessions.run(SUITE, "--bn-audit", "-v", before=FREEZE)
    assert "test_it.py::test_drifts[4], test_it.py::test_drifts_alone why" in summary_of(session)


def test_fail_fails_the_tests_that_leak(sessions: Sessions) -> None:
    session = sessions.run(SUITE, "--bn-audit=fail", before=FREEZE)
    session.tells_apart()
    assert session.first_line("test_drifts_alone") == (
        "1 of 1 frozen BN layer changed: bn1 (mode-flip)"
    )
    said = session.says("test_drifts_alone")
    assert "--bn-audit frozen-moved on Net: 3 of 3 watched tensors changed" in said
    assert "def test_drifts_alone(frozen_net):" in session.texts["test_drifts_alone"]
    assert "found frozen-moved in 6 tests" in summary_of(session)


@pytest.mark.parametrize("how", ["report", "fail"])
def test_workers_findings_are_merged(sessions: Sessions, how: str) -> None:
    here = sessions.run(SUITE, f"--bn-audit={how}", before=FREEZE)
    there = sessions.again(f"--bn-audit={how}", "-n2")
    assert there.outcomes == here.outcomes
    named = re.compile(r" in test_it.*? why")  # which tests come first is chance
    assert named.sub("", summary_of(there)) == named.sub("", summary_of(here))


def test_the_ini_key_asks_for_it_too(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nbn_audit = fail")
    sessions.run(SUITE, before=FREEZE).tells_apart()
    relaxed = sessions.again("--bn-audit=report")
    assert set(relaxed.outcomes.values()) == {"passed"}
    off = sessions.again("-o", "bn_audit=")
    assert "bn audit" not in off.output


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--bn-audit=fails", "*--bn-audit=fails: expected report or fail"),
        ("--bn-audit=", "*--bn-audit=: expected report or fail"),
        ("-obn_audit=fails", "*bn?audit=fails: expected report or fail*"),
    ],
)
def test_a_wrong_value_is_an_error_of_usage(sessions: Sessions, option: str, says: str) -> None:
    sessions.pytester.makepyfile(test_it="def test_passes(): pass")
    result = sessions.bare(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([says])


def test_the_option_takes_no_path_for_its_value(sessions: Sessions) -> None:
    session = sessions.run(SUITE, "--bn-audit", "test_it.py", before=FREEZE)
    assert set(session.outcomes.values()) == {"passed"}
    assert "found frozen-moved in 6 tests" in summary_of(session)


def test_silence_says_what_was_watched(sessions: Sessions) -> None:
    session = sessions.run(
        """
        def test_trains():
            drift(Net())

        def test_holds(frozen_net):
            hold(frozen_net)
        """,
        "--bn-audit=fail",
        before=FREEZE,
    )
    assert summary_of(session) == (
        "bn audit: 2 tests; 4 BN layers ran in 2 of them, 2 in training mode, none of these "
        "frozen; nothing was found"
    )


def test_frozen_layers_that_do_not_leak_are_said_to_be_frozen(sessions: Sessions) -> None:
    session = sessions.run(
        """
        def test_trains():
            drift(Net())

        def test_holds(frozen_net):
            frozen_net.bn1.momentum = 0.0
            drift(frozen_net)
        """,
        "--bn-audit=fail",
        before=FREEZE,
    )
    assert summary_of(session) == (
        "bn audit: 2 tests; 4 BN layers ran in 2 of them, 4 in training mode, 1 of these frozen; "
        "nothing was found"
    )


def test_a_model_that_is_trained_in_eval_is_told_and_fails_no_test(sessions: Sessions) -> None:
    session = sessions.run(
        """
        def test_learns():
            net = Net()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            net(batch()).square().mean().backward()
            optimizer.step()
        """,
        "--bn-audit=fail",
    )
    assert session.outcomes == {"test_learns": "passed"}
    said = summary_of(session)
    assert "also Net: 2 BN layers trained in eval: bn1, bn2 in test_it.py::test_learns" in said
    assert "why stuck-in-eval: bn1 and bn2 (BatchNorm1d) were in eval, as all of Net was" in said
    assert re.search(r"stepped by SGD\.step\(\) at test_it\.py:\d+ in test_learns", said)
    assert said.endswith(
        "bn audit: 1 test; 2 BN layers ran in 1 of them, none in training mode; "
        "found stuck-in-eval in 1 test"
    )


def test_a_reset_in_eval_fails_the_test_and_is_told(sessions: Sessions) -> None:
    session = sessions.run(
        """
        def test_resets(frozen_net):
            frozen_net.bn1.running_mean.fill_(0.5)
            hold(frozen_net)
            frozen_net.bn1.reset_running_stats()
        """,
        "--bn-audit=fail",
        before=FREEZE,
    )
    assert session.outcomes == {"test_resets": "failed"}
    assert session.first_line("test_resets") == "1 of 1 frozen BN layer changed: bn1 (reset)"
    assert summary_of(session).endswith(
        "bn audit: 1 test; 2 BN layers ran in 1 of them, none in training mode; "
        "found frozen-reset in 1 test"
    )


def test_a_suite_without_torch_passes_and_is_said_to_hold_nothing(sessions: Sessions) -> None:
    sessions.pytester.makepyfile(test_it="def test_passes(): pass")
    session = sessions.again("--bn-audit=fail")
    assert session.outcomes == {"test_passes": "passed"}
    assert summary_of(session) == ("bn audit: 1 test; no BN layer ran: there was nothing to audit")


def test_collecting_audits_nothing(sessions: Sessions) -> None:
    sessions.pytester.makepyfile(test_it="def test_passes(): pass")
    assert "bn audit" not in sessions.bare("--bn-audit=fail", "--co").stdout.str()


def test_leaks_are_found_in_every_kind_of_test(sessions: Sessions) -> None:
    session = sessions.run(
        """
        import unittest
        from hypothesis import given, settings, strategies as st

        class TestPlain:
            def test_drifts(self, frozen_net):
                drift(frozen_net)

            def test_holds(self, frozen_net):
                hold(frozen_net)

        class TestCase(unittest.TestCase):
            def setUp(self):
                self.net = Net().requires_grad_(False)

            def test_drifts(self):
                drift(self.net)

            def test_holds(self):
                hold(self.net)

        class TestAsync(unittest.IsolatedAsyncioTestCase):
            async def test_drifts(self):
                drift(Net().requires_grad_(False))

        @pytest.mark.asyncio
        async def test_async_drifts(frozen_net):
            drift(frozen_net)

        @settings(max_examples=5, database=None, deadline=None)
        @given(size=st.integers(2, 5))
        def test_given_drifts(size):
            drift(Net().requires_grad_(False), size)
        """,
        "--bn-audit=fail",
        before=FREEZE,
    )
    session.tells_apart()


def test_what_a_fixture_leaks_counts_for_the_test_whose_setup_ran_it(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.fixture(scope="module")
        def trained():
            net = Net().requires_grad_(False)
            drift(net)
            return net.eval()

        def test_first_drifts(trained):
            hold(trained)

        def test_second_holds(trained):
            hold(trained)
        """,
        "--bn-audit=fail",
    )
    session.tells_apart()


def test_a_setup_that_fails_is_reported_as_it_is_and_its_leak_too(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.fixture
        def broken():
            drift(Net().requires_grad_(False))
            raise ValueError("own")

        def test_it(broken):
            pass
        """,
        "--bn-audit=fail",
    )
    assert session.outcomes == {"test_it": "error"}
    assert "Net: 2 frozen BN layers moved: bn1, bn2" in summary_of(session)


def test_other_outcomes_are_as_under_a_guard(sessions: Sessions) -> None:
    session = sessions.run(
        """
        import unittest

        @pytest.mark.xfail(raises=AssertionError, strict=True)
        def test_xfail(frozen_net):
            drift(frozen_net)

        @pytest.mark.xfail(raises=ValueError, strict=True)
        def test_xfail_of_another(frozen_net):
            drift(frozen_net)

        def test_skip(frozen_net):
            drift(frozen_net)
            pytest.skip("not here")

        @pytest.mark.skip
        def test_never_runs(frozen_net):
            drift(frozen_net)

        def test_own(frozen_net):
            drift(frozen_net)
            raise ValueError("own")

        class TestCase(unittest.TestCase):
            @unittest.expectedFailure
            def test_expected(self):
                drift(Net().requires_grad_(False))

            @unittest.expectedFailure
            def test_unexpected(self):
                hold(Net().requires_grad_(False))

            def test_own(self):
                drift(Net().requires_grad_(False))
                raise ValueError("own")
        """,
        "--bn-audit=fail",
        before=FREEZE,
    )
    assert session.outcomes == {
        "test_xfail": "xfailed",
        "test_xfail_of_another": "failed",
        "test_skip": "skipped",
        "test_never_runs": "skipped",
        "test_own": "failed",
        "TestCase::test_expected": "xfailed",
        "TestCase::test_unexpected": "failed",
        "TestCase::test_own": "failed",
    }
    for name in ("test_own", "TestCase::test_own"):
        assert session.first_line(name) == "ValueError: own"
        assert "when this was raised, --bn-audit had found:" in session.says(name)


def test_a_guards_failure_is_not_told_twice(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn("bn1")
        def test_drifts(frozen_net):
            drift(frozen_net)
        """,
        "--bn-audit=fail",
        before=FREEZE,
    )
    assert session.says("test_drifts").count("frozen BN layer changed") == 1
    assert "frozen_bn('bn1') on Net" in session.says("test_drifts")
    assert "in test_it.py::test_drifts why" in summary_of(session)


def test_a_rerun_is_audited_anew(sessions: Sessions) -> None:
    session = sessions.run(
        """
        drifts = iter([True])

        def test_it(frozen_net):
            (drift if next(drifts, False) else hold)(frozen_net)
        """,
        "--bn-audit=fail",
        "--reruns=1",
        before=FREEZE,
    )
    assert session.outcomes == {"test_it": "passed"}
