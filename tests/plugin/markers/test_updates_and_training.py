"""`bn_updates` and `trains` as markers and fixtures, in whole sessions."""

from __future__ import annotations

import pytest

from tests.plugin.sessions import Session, Sessions

STEPS = """
def train(model, *batches, lr=0.1):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for each in batches:
        model(each).square().mean().backward()
    optimizer.step()

def once(model):
    train(model, batch())

def twice(model):
    train(model, batch(), batch(9))

def still(model):
    train(model, batch(), lr=0.0)
"""


def hold_that_all_is_told(session: Session, headlines: dict[str, str]) -> None:
    """Check that tests named `holds` pass, and the others fail with these headlines."""
    for name, outcome in session.outcomes.items():
        assert outcome == ("passed" if "holds" in name else "failed"), f"{name}: {session.output}"
    assert {name: session.first_line(name) for name in headlines} == headlines
    assert set(session.texts) == set(headlines)
    for name, headline in headlines.items():
        assert headline.startswith(session.summaries[name].removesuffix("..."))


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_the_markers_go_around_the_call(sessions: Sessions, workers: tuple[str, ...]) -> None:
    session = sessions.run(
        """
        @pytest.mark.bn_updates
        def test_holds(model):
            once(model)

        @pytest.mark.bn_updates
        def test_updated_twice(model):
            twice(model)

        @pytest.mark.bn_updates("bn1", times=2)
        def test_holds_twice(model):
            twice(model)

        @pytest.mark.trains
        class TestTraining:
            def test_holds(self, model):
                once(model)

            def test_still(self, model):
                still(model)

        @pytest.mark.frozen("bn1", trains="bn2")
        def test_both(model):
            still(model)
        """,
        *workers,
        before=STEPS,
    )
    hold_that_all_is_told(
        session,
        {
            "test_updated_twice": "2 of 2 BN layers not updated exactly once: bn1, bn2 "
            "(extra-forward)",
            "TestTraining::test_still": "5 of 7 trainable parts did not train: bn1.weight, "
            "bn1.bias and 3 more (learning-rate-0)",
            "test_both": "frozen('bn1', trains='bn2'): 1 of 1 frozen layer changed: bn1 "
            "(mode-flip)",
        },
    )
    assert "and trains('bn2'): 2 of 3 trainable parts did not train" in session.says("test_both")


def test_the_fixtures_go_around_any_block(sessions: Sessions) -> None:
    session = sessions.run(
        """
        def test_holds(model, bn_updates, trains):
            with bn_updates(model, times=2), trains(model):
                twice(model)

        def test_updated_twice(model, bn_updates):
            with bn_updates(model):
                twice(model)

        def test_still(model, trains):
            with trains(model, "fc"):
                still(model)
        """,
        before=STEPS,
    )
    hold_that_all_is_told(
        session,
        {
            "test_updated_twice": "2 of 2 BN layers not updated exactly once: bn1, bn2 "
            "(extra-forward)",
            "test_still": "1 of 1 trainable part did not train: fc.weight (learning-rate-0)",
        },
    )


def test_what_a_markers_companion_warns_of_is_told_at_the_test(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.fixture
        def bias(model):
            return model.bn2.bias.data.fill_(1e9)

        @pytest.mark.frozen("bn1", trains=["fc", "bn2.bias"])
        def test_holds(model, bias):
            bias = model.bn2.bias
            optimizer = torch.optim.SGD([bias, model.fc.weight], lr=1e-9)
            model(batch()).square().mean().backward()
            bias.grad.fill_(1e-9)
            model.fc.weight.grad.fill_(1e9)
            optimizer.step()
        """,
    )
    assert session.outcomes == {"test_holds": "passed"}
    assert "test_it.py:12: InvariantHazard: trains('fc', 'bn2.bias') holds, but" in session.output


def test_a_violation_may_be_expected_and_a_gate_that_cannot_judge_may_not(
    sessions: Sessions,
) -> None:
    session = sessions.run(
        """
        @pytest.mark.xfail(raises=AssertionError)
        @pytest.mark.bn_updates
        def test_expected(model):
            twice(model)

        @pytest.mark.xfail
        @pytest.mark.bn_updates("bn3")
        def test_of_nothing(model):
            once(model)

        @pytest.mark.xfail
        @pytest.mark.bn_updates(time=2)
        def test_with_an_unknown_option(model):
            once(model)

        @pytest.mark.xfail
        @pytest.mark.trains("bn1", parameters=False)
        def test_with_anothers_option(model):
            once(model)
        """,
        before=STEPS,
    )
    assert session.outcomes == {
        "test_expected": "xfailed",
        "test_of_nothing": "failed",
        "test_with_an_unknown_option": "failed",
        "test_with_anothers_option": "failed",
    }
    assert "'bn3' matches nothing in the model" in session.says("test_of_nothing")
    assert "has no option time=; did you mean times=?" in session.says(
        "test_with_an_unknown_option"
    )
    assert "accepted: buffers, exclude, model" in session.says("test_with_anothers_option")


def test_under_given_each_example_is_a_step(sessions: Sessions) -> None:
    session = sessions.run(
        """
        from hypothesis import given, settings, strategies as st

        calm = settings(database=None, derandomize=True, deadline=None, max_examples=30)

        @pytest.fixture(scope="module")
        def shared():
            return Net()

        @pytest.mark.bn_updates
        @calm
        @given(size=st.integers(2, 40))
        def test_holds(shared, size):
            train(shared, batch(size))

        @pytest.mark.bn_updates
        @calm
        @given(size=st.integers(2, 40))
        def test_shrinks(shared, size):
            train(shared, *[batch(size)] * (2 if size > 7 else 1))
        """,
        before=STEPS,
    )
    assert session.outcomes == {"test_holds": "passed", "test_shrinks": "failed"}
    assert "size=8" in session.says("test_shrinks")


def test_the_markers_are_listed(sessions: Sessions) -> None:
    output = sessions.bare("--markers").stdout.str()
    assert (
        "@pytest.mark.bn_updates(*modules, times=1, per='step', exclude=(), model=None)" in output
    )
    assert "@pytest.mark.trains(*modules, buffers=True, exclude=(), model=None)" in output
