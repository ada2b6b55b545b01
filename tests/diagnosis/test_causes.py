"""The causes that docs/causes/ has are those of the rules, and no others."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pytest_bninvariants
from pytest_bninvariants.diagnosis.rule import Rule

PAGES = Path(__file__).parents[2] / "docs" / "causes"
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


def reporters(module: str) -> str:
    """Return what reports the causes of a module's table: an invariant, or the audit."""
    named = {FROZEN: "frozen", AUDIT: "audit"}
    return named.get(module, module.split(".")[2])


def sections(page: str) -> dict[str, str]:
    """Return the sections of a page by their headings."""
    parts = re.split(r"^## (.+)$", (PAGES / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_each_cause_has_a_section_that_names_what_reports_it() -> None:
    expected: dict[str, set[str]] = defaultdict(set)
    for module in TABLES:
        for cause in causes(module):
            expected[cause].add(reporters(module))
    found = {
        name: set(re.findall(r"\[(\w+)\]", text.partition("Reported by ")[2]))
        for name, text in sections("index.md").items()
        if "Reported by " in text
    }
    assert found == expected


def test_each_cause_of_frozen_state_has_an_example_with_its_verdict() -> None:
    shown = sections("statistics.md") | sections("writes.md")
    assert set(shown) == causes(FROZEN)
    for name, text in shown.items():
        assert f"E   why  {name}: " in text


@pytest.mark.parametrize("module", TABLES)
def test_a_rule_that_knows_a_place_says_what_was_done_there(module: str) -> None:
    for rule in TABLES[module]:
        knows_place = rule.place is not Rule.__dataclass_fields__["place"].default
        assert bool(rule.did) == knows_place, rule.cause
