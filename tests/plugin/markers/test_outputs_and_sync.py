"""same_output, batch_invariant and in_sync in whole sessions: as markers and as fixtures."""

from __future__ import annotations

import pytest

from tests.plugin.sessions import Sessions

FIXTURES = """
import copy

@pytest.fixture
def images():
    return batch()

@pytest.fixture
def batches():
    return {"images": batch(), "more": [batch(4)]}

@pytest.fixture
def teacher(model):
    return copy.deepcopy(model)

@pytest.fixture
def nets():
    return {"one": nn.Linear(1, 1), "two": nn.Linear(1, 1)}

@pytest.fixture
def careless(model):
    model.bn1 = nn.BatchNorm1d(4, track_running_stats=False)
    return model
"""


def headline(sessions: Sessions, source: str, name: str = "test_it") -> str:
    session = sessions.run(source, before=FIXTURES)
    assert session.outcomes[name] == "failed", session.output
    return session.first_line(name)


def test_same_output_puts_a_guard_around_the_call(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.same_output(inputs="images")
        def test_holds(model, images):
            hold(model)

        @pytest.mark.same_output(inputs="images")
        def test_drifts(model, images):
            drift(model)

        @pytest.mark.same_output("bn1", inputs="batches.images", model="model")
        @pytest.mark.same_output("bn1", inputs=["batches.more.0"], model="model")
        @pytest.mark.same_output("bn1", inputs={"input": "batches.images"}, model="model")
        def test_holds_for_a_part(model, teacher, batches):
            nudge(model)

        def test_holds_as_a_fixture(model, images, same_output):
            with same_output(model, images):
                hold(model)
        """,
        before=FIXTURES,
    )
    wrong = {name for name, outcome in session.outcomes.items() if outcome != "passed"}
    assert wrong == {"test_drifts"}, session.output
    assert session.first_line("test_drifts") == "1 of 1 output changed: output (mode-flip)"
    assert "same_output() on Net (fixture 'model')" in session.says("test_drifts")


def test_batch_invariant_judges_what_the_call_leaves(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.batch_invariant(inputs="images")
        def test_holds(model, images):
            drift(model)

        @pytest.mark.batch_invariant(inputs="images")
        def test_drifts(careless, images):
            careless.train()

        def test_holds_as_a_fixture(model, images, batch_invariant):
            assert batch_invariant(model, images).holds
        """,
        before=FIXTURES,
    )
    assert [*session.outcomes.values()].count("failed") == 1, session.output
    first = session.first_line("test_drifts")
    assert first == "1 of 1 output depends on the batch: output (no-stored-statistics)"


def test_in_sync_compares_two_models_after_the_call(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.in_sync("model", "teacher")
        @pytest.mark.in_sync("model", "teacher", "bn1", parameters=True)
        def test_holds(model, teacher):
            nudge(model)

        @pytest.mark.in_sync("model", "teacher")
        def test_drifts(model, teacher):
            drift(model)

        @pytest.mark.in_sync("model", "teacher", decay=0.5)
        def test_drifts_from_its_average(model, teacher):
            drift(model)
            nudge(model)

        @pytest.mark.in_sync("model", "teacher", decay=0.5)
        def test_holds_with_its_average(model, teacher):
            drift(model)
            nudge(model)
            with torch.no_grad():
                for mine, theirs in zip(teacher.parameters(), model.parameters()):
                    mine.lerp_(theirs, 0.5)
            for mine, theirs in zip(teacher.buffers(), model.buffers()):
                mine.copy_(theirs)

        def test_holds_as_a_fixture(model, teacher, in_sync):
            in_sync(model, teacher)
        """,
        before=FIXTURES,
    )
    wrong = {name for name, outcome in session.outcomes.items() if outcome != "passed"}
    assert wrong == {"test_drifts", "test_drifts_from_its_average"}, session.output
    assert session.first_line("test_drifts") == "2 of 2 layers differ: bn1, bn2 (left-behind)"
    told = session.says("test_drifts")
    assert "the running statistics of bn1 and bn2 in 'teacher' are the initial ones" in told
    assert "in zip(teacher.buffers(), model.buffers())" in told
    first = session.first_line("test_drifts_from_its_average")
    assert first == "3 of 3 layers not averaged with decay 0.5: bn1, fc and 1 more (left-behind)"


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("same_output", "(inputs=...) takes the name of a fixture or a dotted path"),
        ("same_output(inputs=[])", "(inputs=...) takes the name of a fixture"),
        ("same_output(inputs='image')", "inputs='image': the test has no fixture 'image'"),
        ("same_output(inputs='images.x')", "inputs='images.x': 'images' is a Tensor and has no"),
        ("same_output(inputs='images', tol=1)", "has no option tol="),
        ("same_output('bn', inputs='images')", "'bn' matches no module in the model"),
        ("batch_invariant(inputs=3)", "takes the name of a fixture or a dotted path"),
        ("batch_invariant(inputs='model')", "there is no tensor in the inputs"),
        ("in_sync", "takes two models first"),
        ("in_sync('model', 'ema')", "the test has no fixture 'ema'"),
        ("in_sync('model', 'nets')", "'nets' is not a torch.nn.Module but {'one': "),
        ("in_sync('model', 'nets')", "(dict); say 'nets.one' or 'nets.two' (asked"),
        ("in_sync('model', 'nets.on')", "'nets' is a dict and has no 'on'; say 'nets.one' or"),
        ("in_sync('model', 'model')", "got the same one twice"),
        ("in_sync('model')", "compares the ranks of a distributed run"),
        ("in_sync('model', 'images')", "is not a torch.nn.Module"),
        ("in_sync('model', 'model', model='model')", "has no option model="),
    ],
)
def test_what_a_marker_gets_wrong_is_named(sessions: Sessions, marker: str, message: str) -> None:
    session = sessions.run(
        f"""
        @pytest.mark.{marker}
        def test_it(model, images, nets):
            hold(model)
        """,
        before=FIXTURES,
    )
    assert session.outcomes["test_it"] == "failed"
    told = session.says("test_it")
    assert message in told
    assert f"(asked for by @pytest.mark.{marker.partition('(')[0]}" in told


def test_in_sync_does_not_speak_of_an_option_that_it_has_not(sessions: Sessions) -> None:
    first = headline(
        sessions,
        """
        @pytest.mark.in_sync("model", "ema")
        def test_it(model):
            hold(model)
        """,
    )
    assert first.startswith(
        "cannot judge: 'ema': the test has no fixture 'ema'; its fixtures are 'model'"
    )


def test_a_test_that_fails_itself_wins(sessions: Sessions) -> None:
    first = headline(
        sessions,
        """
        @pytest.mark.in_sync("model", "teacher")
        @pytest.mark.same_output(inputs="images", model="model")
        def test_it(model, teacher, images):
            drift(model)
            raise RuntimeError("mine")
        """,
    )
    assert first == "RuntimeError: mine"


def test_under_given_each_example_starts_with_the_model_and_its_copy_put_back(
    sessions: Sessions,
) -> None:
    session = sessions.run(
        """
        from hypothesis import given, strategies as st

        NETS = Net(), Net()

        @pytest.fixture(scope="module")
        def one():
            return NETS[0]

        @pytest.fixture(scope="module")
        def other():
            return NETS[1]

        @pytest.mark.in_sync("one", "other")
        @given(size=st.integers(0, 64))
        def test_it(one, other, size):
            if size > 4:
                drift(other, size)
        """,
    )
    assert session.outcomes["test_it"] == "failed"
    assert "size=5" in session.output.replace("\\n", " ")
