"""The causes that docs/causes.md has are those of the rules, and no others."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pytest_bninvariants
from pytest_bninvariants.diagnosis.rule import Rule

PAGE = (Path(__file__).parents[2] / "docs" / "causes.md").read_text()
FROZEN = "pytest_bninvariants.state_change.rules.order"
AUDIT = "pytest_bninvariants.audit.findings.leaks"


def tables() -> Iterator[tuple[str, tuple[Rule[Any], ...]]]:
    """Yield each module of the package that has rules, and the rules."""
    for info in pkgutil.walk_packages(pytest_bninvariants.__path__, "pytest_bninvariants."):
        if ".conformance" not in info.name:
            rules = getattr(importlib.import_module(info.name), "RULES", ())
            if rules:
                yield info.name, rules


TABLES = dict(tables())


def causes(module: str) -> set[str]:
    return {rule.cause for rule in TABLES[module]}


def test_each_cause_of_frozen_state_has_a_section_with_its_verdict_and_a_row() -> None:
    assert set(re.findall(r"^### ([\w-]+), `", PAGE, re.MULTILINE)) == causes(FROZEN)
    assert set(re.findall(r"^\| `([\w-]+)` \| `test_", PAGE, re.MULTILINE)) == causes(FROZEN)


def test_each_other_table_has_a_row_with_its_causes() -> None:
    rows = re.findall(r"^\| \[`([\w-]+)`\]\(.*\) \| (.*) \|$", PAGE, re.MULTILINE)
    found = {reporter: set(re.findall(r"`([\w-]+)`", cell)) for reporter, cell in rows}
    modules = {module: module.split(".")[2] for module in TABLES if module not in (FROZEN, AUDIT)}
    expected = {invariant: causes(module) for module, invariant in modules.items()}
    assert found == {**expected, "--bn-audit": causes(AUDIT)}


@pytest.mark.parametrize("module", TABLES)
def test_a_rule_that_knows_a_place_says_what_was_done_there(module: str) -> None:
    for rule in TABLES[module]:
        knows_place = rule.place is not Rule.__dataclass_fields__["place"].default
        assert bool(rule.did) == knows_place, rule.cause
