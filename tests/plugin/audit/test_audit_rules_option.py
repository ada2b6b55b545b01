"""`--bn-audit-rules`: which findings are told, and which fail a test."""

from __future__ import annotations

import pytest

from tests.plugin.audit.audit_summary import summary_of
from tests.plugin.sessions import Session, Sessions

SUITE = """
    from torch.utils.checkpoint import checkpoint

    def learn(net, x, parameters=None):
        optimizer = torch.optim.SGD(parameters or net.parameters(), lr=0.1)
        net(x).square().mean().backward()
        optimizer.step()

    def test_recomputes():
        net = Net().train()
        learn(lambda x: checkpoint(net, x, use_reentrant=False), batch(), net.parameters())

    def test_overflows():
        learn(Net().train(), batch() * float("inf"))

    def test_learns_in_eval():
        learn(Net(), batch())

    def test_lacks_a_layer():
        net = Net().train()
        learn(net, batch(), net.bn1.parameters())

    def test_holds():
        learn(Net().train(), batch())
"""
FAULTS = {"test_recomputes", "test_overflows"}
MEANT = {"test_learns_in_eval", "test_lacks_a_layer"}


def failed(session: Session) -> set[str]:
    return {name for name, outcome in session.outcomes.items() if outcome == "failed"}


def test_a_frozen_layer_among_several_findings_is_what_xfail_may_expect(
    sessions: Sessions,
) -> None:
    session = sessions.run(
        """
        from pytest_bninvariants import FrozenStateChanged

        @pytest.mark.xfail(raises=FrozenStateChanged, strict=True)
        def test_both():
            net = Net().train()
            net.bn1.requires_grad_(False)
            net(batch() * float("nan"))
        """,
        "--bn-audit=fail",
    )
    assert session.outcomes == {"test_both": "xfailed"}


def test_by_default_faults_fail_and_what_can_be_meant_is_told(sessions: Sessions) -> None:
    session = sessions.run(SUITE, "--bn-audit=fail")
    assert failed(session) == FAULTS
    assert (
        session.first_line("test_overflows") == "2 of 2 BN layers not finite: bn1, bn2 (not-finite)"
    )
    assert session.first_line("test_recomputes") == (
        "2 of 2 BN layers updated again in backward: bn1, bn2 (recomputation)"
    )
    assert "InvariantBroken" in session.texts["test_overflows"]
    said = summary_of(session)
    assert "also Net: 2 BN layers trained in eval: bn1, bn2" in said
    assert "also Net: 2 layers in no optimizer: fc, bn2 in test_it.py::test_lacks_a_layer" in said
    assert "once mended, these markers keep it so: @pytest.mark.bn_updates bn audit:" in said
    assert said.endswith(
        "found recomputation in 1 test, not-finite in 1 test, stuck-in-eval in 1 test, "
        "not-in-optimizer in 1 test"
    )


@pytest.mark.parametrize(
    ("rules", "fails", "untold"),
    [
        ("all", FAULTS | MEANT, ""),
        ("not-finite", {"test_overflows"}, "backward"),
        ("-not-finite,-stuck-in-eval", {"test_recomputes"}, "trained in eval"),
        ("+not-in-optimizer", FAULTS | {"test_lacks_a_layer"}, ""),
    ],
)
def test_rules_are_chosen_added_and_left_out(
    sessions: Sessions, rules: str, fails: set[str], untold: str
) -> None:
    session = sessions.run(SUITE, "--bn-audit=fail", f"--bn-audit-rules={rules}")
    assert failed(session) == fails
    assert not untold or untold not in summary_of(session)


def test_the_ini_key_chooses_and_the_command_line_wins(sessions: Sessions) -> None:
    sessions.pytester.makeini(
        "[pytest]\nbn_audit = fail\nbn_audit_rules = not-finite recomputation"
    )
    assert failed(sessions.run(SUITE)) == FAULTS
    assert failed(sessions.again("--bn-audit-rules=all")) == FAULTS | MEANT


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--bn-audit", "--bn-audit-rules=nan"],
            "*--bn-audit-rules: 'nan' is not a rule*accepted: *",
        ),
        (["--bn-audit", "--bn-audit-rules="], "*--bn-audit-rules= is empty*"),
        (["--bn-audit-rules=all"], "*--bn-audit-rules is for an audit: give --bn-audit too*"),
        (["--bn-audit-xfails=x"], "*--bn-audit-xfails is for an audit: give --bn-audit too*"),
    ],
)
def test_wrong_options_are_usage_errors(
    sessions: Sessions, arguments: list[str], says: str
) -> None:
    sessions.pytester.makepyfile(test_it="def test_passes(): pass")
    result = sessions.bare(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([says])
