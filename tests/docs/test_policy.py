"""The page that says what is public names it all, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pytest_bninvariants
from pytest_bninvariants import catalogue

PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| ([\w ,`]+?) \| (.+) \|$", PAGE.split("## How")[0], re.MULTILINE))


def names(*rows: str) -> set[str]:
    return {name for row in rows for name in re.findall(r"`([\w-]+)`", ROWS[row])}


def test_each_public_name_is_on_the_page() -> None:
    told = names("functions and classes of `pytest_bninvariants`", "exceptions and warnings")
    assert told == set(pytest_bninvariants.__all__)


def test_each_marker_is_on_the_page() -> None:
    marked = {name for name, each in catalogue.INVARIANTS.items() if each.marker}
    assert names("markers") == {*marked, "ranks"}


def test_each_option_and_ini_key_is_on_the_page(pytester: pytest.Pytester) -> None:
    told = pytester.runpytest_inprocess("--help").stdout.str()
    options = set(re.findall(r"^  (--bn-[a-z-]+)", told, re.MULTILINE))
    keys = set(re.findall(r"^  (bn_[a-z_]+) \(", told, re.MULTILINE))
    assert (names("options"), names("ini keys")) == (options, keys)
