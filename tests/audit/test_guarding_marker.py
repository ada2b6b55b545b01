"""The marker that an audit advises covers what it found in few names, and nothing that is right."""

from __future__ import annotations

import pytest

from pytest_bninvariants.audit.findings.guarding_marker import guarding_marker


@pytest.mark.parametrize(
    ("layers", "others", "arguments"),
    [
        (["a.bn"], [], ""),
        (["a.bn", "b.bn"], [], ""),
        (["a.bn"], ["b.bn"], '("a")'),
        (["a.0.bn", "a.1.bn"], ["b.bn"], '("a")'),
        (["a.0.bn", "b.bn"], ["a.1.bn"], '("a.0", "b")'),
        (["a.bn", "ab.bn"], ["abc.bn"], '("a", "ab")'),
        (["a", "a.bn"], ["a.right"], '("a")'),
        (["a.bn"], ["b.bn", "c.bn"], '("a")'),
        ([""], ["a"], ""),
    ],
)
def test_the_outermost_names_that_cover_nothing_else_are_advised(
    layers: list[str], others: list[str], arguments: str
) -> None:
    marker = guarding_marker("frozen-moved", layers, others)
    assert marker == f"@pytest.mark.frozen_bn{arguments}"


@pytest.mark.parametrize(
    ("rule", "name"), [("not-finite", "bn_updates"), ("not-in-optimizer", "trains")]
)
def test_each_rule_has_the_marker_that_guards_against_it(rule: str, name: str) -> None:
    assert guarding_marker(rule, ["bn"], []) == f"@pytest.mark.{name}"
