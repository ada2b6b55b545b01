"""The ini key `bn_layer_types`."""

from __future__ import annotations

import pytest

from pytest_bninvariants import asked
from pytest_bninvariants.asked import ask
from tests.pytester.sessions import LOOP_SCOPE, Sessions

OWN_NORM = """
    from pytest_bninvariants import frozen_bn as plain

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            if self.training:
                self.mean.add_(x.mean(0))
            return x - self.mean

    class Heir(Norm):
        pass

    @pytest.fixture
    def net():
        return nn.Sequential(Heir()).eval()

    @pytest.mark.frozen_bn
    def test_marker_holds(net):
        hold(net)

    @pytest.mark.frozen_bn
    def test_marker_drifts(net):
        drift(net)

    def test_fixture_holds(net, frozen_bn):
        with frozen_bn(net):
            hold(net)

    def test_fixture_drifts(net, frozen_bn):
        with frozen_bn(net):
            drift(net)

    def test_plain_holds(net):
        with plain(net):
            hold(net)

    def test_plain_drifts(net):
        with plain(net):
            drift(net)
"""


@pytest.mark.parametrize(
    "name", ["Norm", "test_it.Norm", "test_it:Norm", "Heir", "Other\n    test_it.Norm"]
)
def test_layers_of_a_named_type_or_of_a_type_below_it_are_bn_layers(
    sessions: Sessions, name: str
) -> None:
    sessions.pytester.makeini(f"[pytest]\nbn_layer_types = {name}")
    session = sessions.run(OWN_NORM)
    session.tells_apart()
    assert session.summaries["test_plain_drifts"].startswith("1 of 1 frozen BN layer changed: 0")


@pytest.mark.parametrize("name", ["Other", "norm"])
def test_layers_of_other_types_are_none(sessions: Sessions, name: str) -> None:
    sessions.pytester.makeini(f"[pytest]\nbn_layer_types = {name}")
    session = sessions.run(OWN_NORM)
    assert set(session.outcomes.values()) == {"failed"}
    for name in session.texts:
        assert session.first_line(name).startswith("the model has no BN layer")


@pytest.mark.parametrize("name", ["other.Norm", "test_it.Other", "test_it:Norm.Other"])
def test_a_name_that_cannot_be_imported_fails_what_needs_it(sessions: Sessions, name: str) -> None:
    sessions.pytester.makeini(f"[pytest]\nbn_layer_types = {name}")
    session = sessions.run(OWN_NORM)
    assert set(session.outcomes.values()) == {"failed"}
    for test in session.texts:
        assert f"bn_layer_types: '{name}' cannot be imported" in session.first_line(test)


def test_a_name_of_something_else_than_a_class_fails_what_needs_it(sessions: Sessions) -> None:
    sessions.pytester.makeini(f"[pytest]\n{LOOP_SCOPE}\nbn_layer_types = torch.nn")
    session = sessions.run("""
        @pytest.mark.frozen_bn
        def test_step(model):
            hold(model)
    """)
    assert session.outcomes == {"test_step": "failed"}
    assert "bn_layer_types: 'torch.nn' is no class" in session.first_line("test_step")


def test_the_names_are_forgotten_after_the_session(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nbn_layer_types = Norm")
    sessions.run(OWN_NORM).tells_apart()
    assert asked.bn_layer_types == frozenset()
    sessions.pytester.makeini("[pytest]")
    assert set(sessions.again().outcomes.values()) == {"failed"}


def test_names_are_put_back_where_a_session_runs_inside_another(sessions: Sessions) -> None:
    put_back = ask(bn_layer_types=frozenset(["Outer"]))
    try:
        sessions.pytester.makeini("[pytest]\nbn_layer_types = Norm")
        sessions.pytester.makepyfile(test_it="def test_it(): pass")
        sessions.pytester.runpytest_inprocess("-pno:cacheprovider", *LOOP_SCOPE)
        assert asked.bn_layer_types == frozenset({"Outer"})
    finally:
        put_back()


def test_workers_know_the_names(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nbn_layer_types = Norm")
    sessions.run(OWN_NORM, "-n2").tells_apart()


@pytest.mark.parametrize(
    "name", ["My-Norm", "a..Norm", ".Norm", "1x", "a:", "Norm()", "Norm,Other"]
)
@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["here", "workers"])
def test_what_is_no_name_of_a_class_is_a_usage_error(
    sessions: Sessions, name: str, args: list[str]
) -> None:
    sessions.pytester.makeini(f"[pytest]\nbn_layer_types = Fine {name}")
    sessions.pytester.makepyfile(test_it="def test_it(): pass")
    result = sessions.bare(*args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    assert (
        f"ERROR: bn_layer_types: {name!r} is no name of a class; "
        "give 'Class', 'package.module.Class' or 'package.module:Class'"
    ) in result.errlines
