"""The ini key `bn_layer_types`."""

from __future__ import annotations

from textwrap import dedent

import pytest

from pytest_bninvariants import run_config
from pytest_bninvariants.run_config import override
from tests.plugin.sessions import LOOP_SCOPE, Sessions

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
        assert session.first_line(name).startswith("cannot judge: the model has no BN layer")


NO_IMPORT = {
    "other.Norm": "'other.Norm' cannot be imported: No module named 'other'",
    "test_it.Other": "'test_it.Other' cannot be imported: module 'test_it' has no attr",
    "test_it:Norm.Other": "'test_it:Norm.Other' cannot be imported: type object 'Norm' has no",
    "torch.nn": "'torch.nn' is not a class, but <module 'torch.nn' from",
}
BY_MARKER = """
    @pytest.mark.frozen_bn
    def test_step(model):
        hold(model)
"""
BY_FIXTURE = """
    def test_step(model, frozen_bn):
        with frozen_bn(model):
            hold(model)
"""


@pytest.mark.parametrize("name", NO_IMPORT)
@pytest.mark.parametrize("tests", [BY_MARKER, BY_FIXTURE], ids=["marker", "fixture"])
def test_a_name_that_cannot_be_imported_is_an_error_of_usage(
    sessions: Sessions, name: str, tests: str
) -> None:
    sessions.pytester.makeini(f"[pytest]\nbn_layer_types = {name}")
    header = "import pytest\nfrom torch import nn\nfrom nets import hold\nclass Norm: pass\n"
    sessions.pytester.makepyfile(test_it=header + dedent(tests))
    result = sessions.bare()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (told,) = [line for line in result.errlines if line.startswith("ERROR: ")]
    assert told.startswith(f"ERROR: bn_layer_types: {NO_IMPORT[name]}")


def test_a_name_that_cannot_be_imported_is_told_by_workers(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nbn_layer_types = other.Norm")
    sessions.pytester.makepyfile(
        test_it="import pytest\n@pytest.mark.frozen_bn\ndef test_step(): pass"
    )
    result = sessions.bare("-n2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    # before pytest 9 the short summary leaves out what is said
    assert any(line.startswith("ERROR bn_layer_types") for line in result.outlines)
    assert any("'other.Norm' cannot be imported" in line for line in result.outlines)
    assert "INTERNALERROR" not in result.stdout.str()


def test_a_name_that_cannot_be_imported_fails_what_needs_it(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nbn_layer_types = other.Norm")
    session = sessions.run("""
        from pytest_bninvariants import frozen_bn as plain

        def test_step(model):
            with plain(model):
                hold(model)

        def test_without_a_guard(model):
            hold(model)
    """)
    assert session.outcomes == {"test_step": "failed", "test_without_a_guard": "passed"}
    assert "bn_layer_types: 'other.Norm' cannot be imported" in session.first_line("test_step")


TELLS = "bn_layer_types: this run has no torch.nn.Module named 'Nrom', so the entry"


@pytest.mark.parametrize("args", [(), ("-n2",)], ids=["alone", "workers"])
def test_a_name_that_no_type_has_is_told_at_the_end(
    sessions: Sessions, args: tuple[str, ...]
) -> None:
    sessions.pytester.makeini("[pytest]\nbn_layer_types = Nrom Net")
    session = sessions.run(f"{BY_MARKER}\n{BY_FIXTURE.replace('step', 'other')}", *args)
    assert set(session.outcomes.values()) == {"passed"}
    told = [line for line in session.lines if line.startswith("bn_layer_types")]
    assert [line.startswith(TELLS) for line in told] == [True]


def test_nothing_is_told_of_names_where_no_model_was_looked_at(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nbn_layer_types = Nrom")
    session = sessions.run("def test_it(model): hold(model)")
    assert "bn_layer_types" not in session.output


def test_the_names_are_forgotten_after_the_session(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nbn_layer_types = Norm")
    sessions.run(OWN_NORM).tells_apart()
    assert run_config.current.bn_layer_types == ()
    sessions.pytester.makeini("[pytest]")
    assert set(sessions.again().outcomes.values()) == {"failed"}


def test_names_are_put_back_where_a_session_runs_inside_another(sessions: Sessions) -> None:
    with override(bn_layer_types=("Outer",)):
        sessions.pytester.makeini("[pytest]\nbn_layer_types = Norm")
        sessions.pytester.makepyfile(test_it="def test_it(): pass")
        sessions.pytester.runpytest_inprocess("-pno:cacheprovider", *LOOP_SCOPE)
        assert run_config.current.bn_layer_types == ("Outer",)


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
        f"ERROR: bn_layer_types: {name!r} is not the name of a class; "
        "give 'Class', 'package.module.Class' or 'package.module:Class'"
    ) in result.errlines
