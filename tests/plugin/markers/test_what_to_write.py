"""Where a guard cannot judge, the message says what to write instead."""

from __future__ import annotations

import pytest

from tests.plugin.sessions import Sessions

SAID = {
    "modules by a name": (
        '@pytest.mark.frozen(modules=["bn1", "fc"])',
        "hold(model)",
        "has no option modules=; give modules by position: @pytest.mark.frozen('bn1', 'fc') "
        "(accepted: ",
    ),
    "a layer by a name": (
        '@pytest.mark.bn_updates(layer="bn1")',
        "hold(model)",
        "give modules by position: @pytest.mark.bn_updates('bn1')",
    ),
    "modules of a block by a name": (
        "",
        'frozen(model, modules=["bn1"])',
        "; give modules by position: frozen(model, 'bn1') (it takes model, modules, ",
    ),
    "inputs by position": (
        '@pytest.mark.same_output("model", "x")',
        "hold(model)",
        "write @pytest.mark.same_output(model='model', inputs='x')",
    ),
    "inputs by position beside a model by name": (
        '@pytest.mark.batch_invariant("x", model="model")',
        "hold(model)",
        "write @pytest.mark.batch_invariant(inputs='x')",
    ),
    "a tensor for the name of inputs": (
        "@pytest.mark.same_output(inputs=torch.ones(4, 3))",
        "hold(model)",
        "got <Tensor of shape (4, 3)> (asked for by "
        "@pytest.mark.same_output(inputs=<Tensor of shape (4, 3)>))",
    ),
    "a decorator": (
        "",
        "frozen(model, 'bn1')(hold)",
        "frozen('bn1') is a context manager, not a decorator: write `with frozen(...):` around "
        "the step, or mark a test with @pytest.mark.frozen",
    ),
    "a decorator without a model": (
        "",
        "frozen(hold)",
        "(function); on a test write @pytest.mark.frozen",
    ),
    "a with around what judges at once": (
        "",
        "with batch_invariant(model, x, rtol=1.0): hold(model)",
        "batch_invariant(rtol=1.0) judges at once: call it after the step, and without `with`",
    ),
    "a with around a comparison": (
        "",
        "with in_sync(model, copy.deepcopy(model)): hold(model)",
        "in_sync() judges at once",
    ),
    "a module among the inputs": (
        "",
        "with same_output(model, x, 'bn1'): hold(model)",
        "; to compare the outputs of a part of the model, write modules='bn1'",
    ),
}


@pytest.mark.parametrize("wrong", SAID)
def test_a_wrong_call_says_what_to_write(sessions: Sessions, wrong: str) -> None:
    marker, body, said = SAID[wrong]
    session = sessions.run(f"""
        import copy

        @pytest.fixture
        def x():
            return batch()

        @pytest.mark.xfail
        {marker}
        def test_it(model, x, frozen, same_output, batch_invariant, in_sync):
            {body}
    """)
    assert session.outcomes == {"test_it": "failed"}
    assert "cannot judge: " in session.says("test_it")
    assert said in session.says("test_it")


def test_a_test_without_a_model_is_told_of_its_markers_own_fixture(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.mark.trains
        def test_it():
            pass
    """)
    assert session.outcomes == {"test_it": "failed"}
    usage = 'body: with trains(model, "head"): train_step(model, batch) (asked for by'
    assert usage in session.says("test_it")


def test_the_health_check_on_function_scoped_fixtures_is_a_gate_error_that_says_what_to_do(
    sessions: Sessions,
) -> None:
    session = sessions.run("""
        from hypothesis import given, settings, strategies as st

        @pytest.mark.xfail
        @pytest.mark.frozen_bn
        @settings(database=None)
        @given(size=st.integers(2, 9))
        def test_marked(model, size):
            drift(model, size)

        @pytest.mark.xfail
        @settings(database=None)
        @given(size=st.integers(2, 9))
        def test_unmarked(model, size):
            drift(model, size)
    """)
    assert session.outcomes == {"test_marked": "failed", "test_unmarked": "xfailed"}
    said = session.says("test_marked")
    assert said.startswith("cannot judge: hypothesis runs no example, since 'model' is a function-")
    assert "@pytest.fixture(scope='module'); the guard puts the model back" in said


def test_a_model_without_tensors_but_with_state_is_found(sessions: Sessions) -> None:
    session = sessions.run("""
        class Packed(nn.Module):
            def get_extra_state(self):
                return {"weight": 2.0}

            def set_extra_state(self, state):
                pass

            def forward(self, x):
                return 2.0 * x

        @pytest.fixture
        def packed():
            return nn.Sequential(Packed())

        @pytest.fixture
        def loss():
            return nn.MSELoss()

        @pytest.fixture
        def x():
            return batch()

        @pytest.mark.batch_invariant(inputs="x", rtol=1e-3)
        def test_alone(packed, loss, x):
            packed(x)

        @pytest.mark.frozen_bn
        def test_beside_a_model(packed, model):
            hold(model)
    """)
    assert session.outcomes == {"test_alone": "passed", "test_beside_a_model": "passed"}
