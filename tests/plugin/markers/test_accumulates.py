"""The fixture `accumulates`: what a session says of a failure, and of what cannot be judged."""

from __future__ import annotations

from tests.plugin.sessions import Sessions

LOSS = """
def loss(model, batch):
    return model(batch).square().mean()
"""


def test_a_violation_fails_with_the_news_first_and_shows_the_users_line(sessions: Sessions) -> None:
    session = sessions.run(
        """
        def test_holds(model, accumulates):
            assert accumulates(model, batch(), 4, loss=loss).holds

        def test_fails(model, accumulates):
            accumulates(model.train(), batch(), 4, loss=loss)

        @pytest.mark.xfail(raises=AssertionError, strict=True)
        def test_is_expected(model, accumulates):
            accumulates(model.train(), batch(), 4, loss=loss)
    """,
        before=LOSS,
    )
    assert session.outcomes == {
        "test_holds": "passed",
        "test_fails": "failed",
        "test_is_expected": "xfailed",
    }
    assert "gradients do not add up: bn1.weight" in session.first_line("test_fails")
    assert (
        ">       accumulates(model.train(), batch(), 4, loss=loss)" in session.texts["test_fails"]
    )
    assert "why  training-mode: bn1 and bn2 normalised each" in session.texts["test_fails"]


def test_what_cannot_be_judged_fails_even_where_a_failure_is_expected(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.xfail
        def test_k(model, accumulates):
            accumulates(model, batch(3), 4, loss=loss)
    """,
        before=LOSS,
    )
    assert session.outcomes == {"test_k": "failed"}
    assert "a whole number from 2 to 3" in session.texts["test_k"]


def test_a_guard_around_it_sees_nothing_of_the_copies(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        def test_both(model, accumulates):
            hold(model)
            model.train()
            try:
                accumulates(model, batch(), 4, loss=loss)
            except AssertionError:
                pass
            model.eval()
    """,
        before=LOSS,
    )
    assert session.outcomes == {"test_both": "passed"}
