"""Silence is never a pass: what could not be judged has failed, and says why."""

from __future__ import annotations

import re

import pytest

from tests.plugin.sessions import Session, Sessions

GATES = {
    "no model": ("@pytest.mark.frozen_bn", "", "pass", "the test has no model"),
    "a model without BN layers": (
        "@pytest.mark.frozen_bn(model='model.fc')",
        "model",
        "hold(model)",
        "the model has no BN layer: there is nothing to watch",
    ),
    "a model without state": (
        "@pytest.mark.frozen(model='loss')",
        "loss",
        "loss(batch(), batch())",
        "the model has no ... there is nothing to watch",
    ),
    "a pattern that matches nothing": (
        "@pytest.mark.frozen_bn('backbone')",
        "model",
        "hold(model)",
        "'backbone' matches nothing in the model; the model's BN layers are 'bn1', 'bn2'",
    ),
    "a pattern that nearly matches": (
        "@pytest.mark.frozen('bn_2')",
        "model",
        "hold(model)",
        "'bn_2' matches nothing in the model; did you mean 'bn2'?",
    ),
    "a module without BN layers": (
        "@pytest.mark.frozen_bn('fc')",
        "model",
        "hold(model)",
        "'fc' holds no BN layer; the model's BN layers are 'bn1', 'bn2'",
    ),
    "one of two patterns that matches nothing": (
        "@pytest.mark.frozen_bn('bn1', 'bn9')",
        "model",
        "hold(model)",
        "'bn9' matches nothing in the model",
    ),
    "an exception that matches nothing": (
        "@pytest.mark.frozen_bn(exclude='bn9')",
        "model",
        "hold(model)",
        "exclude='bn9' matches nothing that is watched",
    ),
    "an exception that matches everything": (
        "@pytest.mark.frozen_bn(exclude=['bn1', 'bn2'])",
        "model",
        "hold(model)",
        "exclude=['bn1', 'bn2'] leaves nothing to watch",
    ),
    "an unknown option": (
        "@pytest.mark.frozen_bn(buffer=False)",
        "model",
        "hold(model)",
        "@pytest.mark.frozen_bn has no option buffer=; did you mean buffers=? "
        "(accepted: parameters, buffers, allow_batch_stats, exclude, trains, model)",
    ),
    "an option that is like no other": (
        "@pytest.mark.frozen(zzz=1)",
        "model",
        "hold(model)",
        "@pytest.mark.frozen has no option zzz= (accepted: ",
    ),
    "an option that is no truth value": (
        "@pytest.mark.frozen_bn(parameters='no')",
        "model",
        "hold(model)",
        "parameters= takes True or False; got 'no' (str)",
    ),
    "both kinds of state switched off": (
        "@pytest.mark.frozen_bn(parameters=False, buffers=False)",
        "model",
        "hold(model)",
        "parameters=False and buffers=False together leave nothing to watch",
    ),
    "a module that is no name": (
        "@pytest.mark.frozen_bn(1)",
        "model",
        "hold(model)",
        "pass modules by qualified name, such as 'backbone.bn1'; got 1 (int)",
    ),
    "an exception that is no name": (
        "@pytest.mark.frozen_bn(exclude=3)",
        "model",
        "hold(model)",
        "exclude= takes a name or several names; got 3 (int)",
    ),
    "a model that is no name": (
        "@pytest.mark.frozen_bn(model=Net())",
        "model",
        "hold(model)",
        "@pytest.mark.frozen_bn(model=...) takes the name of a fixture or a dotted path "
        "such as 'trainer.model'; got <Net>",
    ),
    "a model that is not there": (
        "@pytest.mark.frozen_bn(model='teacher')",
        "model",
        "hold(model)",
        "model='teacher': the test has no fixture 'teacher'",
    ),
    "nothing ran": (
        "@pytest.mark.frozen_bn('bn1')",
        "model",
        "pass",
        "nothing ran inside frozen_bn('bn1'): it saw no forward of a watched layer",
    ),
    "another model ran": (
        "@pytest.mark.frozen_bn",
        "model",
        "hold(Net())",
        "nothing ran inside frozen_bn(): ",
    ),
    "nothing ran in a block": (
        "",
        "model, frozen",
        "with frozen(model): pass",
        "nothing ran inside frozen(): ",
    ),
    "a bad name in a block": (
        "",
        "model, frozen_bn",
        "with frozen_bn(model, 'bn9'): hold(model)",
        "'bn9' matches nothing in the model",
    ),
    "no model in a block": (
        "",
        "model, frozen_bn",
        "with frozen_bn('bn1'): hold(model)",
        "frozen_bn(model, *modules) takes the model, a torch.nn.Module, first; got 'bn1' (str)",
    ),
    "a guard used twice": (
        "",
        "model, frozen_bn",
        "\n            ".join(
            ["guard = frozen_bn(model)", "with guard: hold(model)", "with guard: hold(model)"]
        ),
        "frozen_bn() guards one step: make a new guard for the next",
    ),
    "a guard by fixture that was never entered": (
        "",
        "model, frozen_bn",
        "frozen_bn(model, 'bn1'); drift(model)",
        "frozen_bn('bn1') ... was never entered, so it watched nothing: use `with`",
    ),
    "a guard by import that was never entered": (
        "",
        "model",
        "import pytest_bninvariants as p; p.frozen(model); drift(model)",
        "frozen() ... was never entered, so it watched nothing: use `with`",
    ),
    "a guard by import that was kept and never entered": (
        "",
        "model",
        "import pytest_bninvariants as p; guard = p.frozen(model); drift(model)",
        "frozen() ... was never entered, so it watched nothing: use `with`",
    ),
}

EXPECTATIONS = {
    "plain": "",
    "xfail": "@pytest.mark.xfail",
    "xfail strict": "@pytest.mark.xfail(strict=True, reason='known')",
    "xfail AssertionError": "@pytest.mark.xfail(raises=AssertionError)",
}


def assert_says(session: Session, name: str, message: str) -> None:
    """Check that a gate error says a message first, in which ` ... ` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in f"cannot judge: {message}".split(" ... "))
    assert re.match(pattern, session.says(name)), session.says(name)


@pytest.mark.parametrize("gate", GATES)
def test_what_could_not_be_judged_has_failed_whatever_xfail_expects(
    sessions: Sessions, gate: str
) -> None:
    marker, fixtures, body, message = GATES[gate]
    tests = [
        f"""
        {expectation}
        {marker}
        def test_{number}({fixtures}):
            {body}
        """
        for number, expectation in enumerate(EXPECTATIONS.values())
    ]
    session = sessions.run(
        """
        @pytest.fixture
        def loss():
            return nn.MSELoss()
        """
        + "".join(tests)
    )
    assert session.outcomes == {f"test_{number}": "failed" for number in range(len(EXPECTATIONS))}
    for name in session.outcomes:
        assert_says(session, name, message)
        shown = session.summaries[name].removesuffix("...")
        assert session.says(name).startswith(shown)


@pytest.mark.parametrize("gate", [gate for gate in GATES if GATES[gate][1] in ("", "model")])
def test_what_could_not_be_judged_in_a_test_case_has_failed(sessions: Sessions, gate: str) -> None:
    marker, fixtures, body, message = GATES[gate]
    body = body.replace("(model", "(self.model")
    tests = [
        f"""
            {expectation}
            {marker}
            def test_{number}(self):
                {body}
        """
        for number, expectation in enumerate([*EXPECTATIONS.values(), "@unittest.expectedFailure"])
    ]
    model = "Net()" if fixtures else "None"
    session = sessions.run(
        f"""
        import unittest

        class TestStep(unittest.TestCase):
            def setUp(self):
                self.model = {model}
        """
        + "".join(tests)
    )
    assert set(session.outcomes.values()) == {"failed"}, session.output
    assert len(session.outcomes) == len(EXPECTATIONS) + 1
    for name in session.outcomes:
        assert_says(session, name, message)


def test_a_gate_says_which_marker_it_is_about(sessions: Sessions) -> None:
    session = sessions.run("""
        pytestmark = pytest.mark.frozen_bn("bn9")

        @pytest.mark.frozen("fc")
        def test_it(model):
            hold(model)
    """)
    assert session.outcomes == {"test_it": "failed"}
    assert "(asked for by @pytest.mark.frozen_bn('bn9'))" in session.says("test_it")


def test_an_optimizer_step_or_a_change_elsewhere_is_something_that_ran(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.mark.frozen_bn
        def test_an_optimizer_step(model):
            torch.optim.SGD(model.parameters(), lr=0.1).step()

        @pytest.mark.frozen_bn
        def test_a_change_elsewhere(model):
            with torch.no_grad():
                model.fc.weight.add_(1)

        @pytest.mark.frozen_bn("bn1")
        def test_the_watched_layer_alone(model):
            model.bn1(batch())

        @pytest.mark.frozen_bn("bn1")
        def test_another_layer_alone(model):
            model.bn2(batch())

        @pytest.mark.frozen_bn
        def test_another_models_optimizer(model):
            torch.optim.SGD(Net().parameters(), lr=0.1).step()
    """)
    assert session.outcomes == {
        "test_an_optimizer_step": "passed",
        "test_a_change_elsewhere": "passed",
        "test_the_watched_layer_alone": "passed",
        "test_another_layer_alone": "failed",
        "test_another_models_optimizer": "failed",
    }


def test_several_gate_errors_are_all_told_and_so_is_a_violation_beside_them(
    sessions: Sessions,
) -> None:
    session = sessions.run("""
        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen_bn("bn2")
        def test_nothing_ran_for_both(model):
            pass

        @pytest.mark.xfail
        @pytest.mark.frozen_bn(model="model")
        @pytest.mark.frozen_bn(model="kept")
        def test_a_violation_beside(model, kept):
            drift(kept)

        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen_bn("bn9")
        def test_a_bad_name_beside(model):
            drift(model)
    """)
    assert set(session.outcomes.values()) == {"failed"}
    both = session.says("test_nothing_ran_for_both")
    assert "nothing ran inside frozen_bn('bn1')" in both
    assert "nothing ran inside frozen_bn('bn2')" in both
    beside = session.texts["test_a_violation_beside"]
    assert "nothing ran inside frozen_bn()" in beside
    assert "2 of 2 frozen BN layers changed: bn1, bn2" in beside
    assert "fixture 'kept'" in beside
    assert "'bn9' matches nothing" in session.says("test_a_bad_name_beside")


def test_an_own_exception_wins_over_nothing_ran(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.mark.frozen_bn
        def test_own(model):
            raise ValueError("own")

        @pytest.mark.xfail(raises=ValueError, strict=True)
        @pytest.mark.frozen_bn
        def test_expected(model):
            raise ValueError("own")
    """)
    assert session.outcomes == {"test_own": "failed", "test_expected": "xfailed"}
    assert session.says("test_own") == "ValueError: own"


def test_a_skipped_test_is_not_judged(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.mark.skip
        @pytest.mark.frozen_bn("bn9")
        def test_skipped(model):
            pass

        @pytest.mark.xfail(run=False)
        @pytest.mark.frozen_bn("bn9")
        def test_not_run(model):
            pass
    """)
    assert session.outcomes == {"test_skipped": "skipped", "test_not_run": "xfailed"}


def test_a_hazard_of_a_marked_test_is_told_at_its_line(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.fixture
        def broken(model):
            model.bn1.running_var[0] = float("nan")
            return model

        @pytest.mark.frozen_bn(model="broken")
        def test_that_it_holds(broken):
            hold(broken)
    """
    )
    said = "InvariantHazard: frozen_bn() holds, but bn1: running statistics are not finite"
    assert re.search(
        rf"test_it.py:\d+: {re.escape(said)}.*\n +def test_that_it_holds", session.output
    )
