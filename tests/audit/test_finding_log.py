"""Findings become one verdict for each rule and model, in the order of the rules."""

from __future__ import annotations

from typing import Any

from pytest_bninvariants.audit.call_context import CallContext
from pytest_bninvariants.audit.findings.finding import AuditFinding
from pytest_bninvariants.audit.findings.finding_log import FindingLog
from pytest_bninvariants.verdict import Change

NOUN = "frozen BN layer"


def at(name: str, position: int = 0, model: str = "Net") -> CallContext:
    return CallContext(model=model, name=name, position=position, holder=None, place=None)


def found(
    context: CallContext, how: Any = "training", *changed: str, tensors: int = 0
) -> AuditFinding:
    changes = tuple(
        Change(name=f"{context.name}.{each}", layer=context.name, kind="values", text="moved")
        for each in changed or ("running_mean",)
    )
    return AuditFinding(
        context=context, kind="BatchNorm2d", how=how, changes=changes, tensors=tensors
    )


def log(*findings: AuditFinding) -> FindingLog:
    filled = FindingLog(lambda _: True)
    for finding in findings:
        filled.add(finding)
    return filled


def test_a_finding_is_named_by_its_rule_model_and_layer() -> None:
    assert found(at("bn")).id == "frozen-moved-Net-bn"
    assert found(at(""), "reset").id == "frozen-reset-Net-the model"


def test_nothing_found_is_no_verdict() -> None:
    filled = log()
    filled.saw(NOUN, at("bn"))
    assert filled.verdicts() == ()


def test_only_findings_that_are_wanted_count() -> None:
    picky = FindingLog(lambda finding: finding.context.name == "bn")
    picky.add(found(at("bn")))
    picky.add(found(at("neck")))
    (only,) = picky.verdicts()
    assert only.ids == ("frozen-moved-Net-bn",)


def test_the_first_finding_of_a_layer_by_a_rule_counts() -> None:
    (only,) = log(found(at("bn")), found(at("bn"), "training", "running_var")).verdicts()
    assert [change.name for change in only.verdict.changes] == ["bn.running_mean"]
    assert len(log(found(at("bn")), found(at("bn"), "reset")).verdicts()) == 2


def test_a_verdict_is_of_one_rule_and_one_model_in_the_order_of_the_rules() -> None:
    told = log(
        found(at("bn"), "no-grad"),
        found(at("bn", model="Other")),
        found(at("bn"), "reset"),
        found(at("bn")),
    ).verdicts()
    assert [(each.rule, each.verdict.model) for each in told] == [
        ("frozen-moved", "Other"),
        ("frozen-moved", "Net"),
        ("frozen-reset", "Net"),
        ("teacher-in-training", "Net"),
    ]
    assert told[0].verdict.guard == "--bn-audit frozen-moved"


def test_layers_are_in_the_order_of_the_model_and_their_tensors_are_added_up() -> None:
    late, early = found(at("b", 2), tensors=3), found(at("a", 1), "training", "x", "y", tensors=2)
    (only,) = log(late, early).verdicts()
    assert only.ids == ("frozen-moved-Net-a", "frozen-moved-Net-b")
    assert only.verdict.tensors == 5
    assert only.verdict.causes[0].layers == ("a", "b")
    assert only.verdict.causes[0].tensors == ("a.x", "a.y", "b.running_mean")


def test_a_verdict_without_tensors_says_so() -> None:
    (only,) = log(found(at("bn"), "stuck")).verdicts()
    assert only.verdict.tensors is None


def test_the_layers_are_those_that_were_seen_or_found() -> None:
    filled = log(found(at("bn")), found(at("bn", model="Other")))
    for name in ("bn", "neck"):
        filled.saw(NOUN, at(name))
    filled.saw("BN layer", at("head.bn"))
    net, other = filled.verdicts()
    assert (net.verdict.layers, other.verdict.layers) == (2, 1)


def test_the_marker_covers_no_layer_that_does_what_is_right() -> None:
    filled = log(found(at("backbone.bn")))
    assert filled.verdicts()[0].marker == "@pytest.mark.frozen_bn"
    filled.saw("BN layer", at("neck"))
    assert filled.verdicts()[0].marker == '@pytest.mark.frozen_bn("backbone")'
    filled.saw(NOUN, at("backbone.other"))
    assert filled.verdicts()[0].marker == '@pytest.mark.frozen_bn("backbone.bn")'
