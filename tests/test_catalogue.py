"""The catalogue of invariants, the public names and the README's table agree."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import pytest_bninvariants
from pytest_bninvariants.catalogue import INVARIANTS
from pytest_bninvariants.plugin import fixtures

ROOT = Path(__file__).parents[1]


def imports_for_type_checkers() -> dict[str, str]:
    """Return the module that `__init__` imports each name from under TYPE_CHECKING."""
    tree = ast.parse(Path(pytest_bninvariants.__file__).read_text())
    (guarded,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    found = {}
    for node in guarded.body:
        assert isinstance(node, ast.ImportFrom)
        for name in node.names:
            assert name.asname == name.name, "a type checker takes `X as X` for public"
            found[name.name] = str(node.module)
    return found


def test_type_checkers_see_the_names_and_modules_that_are_loaded() -> None:
    homes = {
        name: f"pytest_bninvariants.{module}" for name, module in pytest_bninvariants._HOMES.items()
    }
    assert imports_for_type_checkers() == homes


def test_a_star_import_gives_the_public_names() -> None:
    space: dict[str, object] = {}
    exec("from pytest_bninvariants import *", space)
    assert space.keys() - {"__builtins__"} == imports_for_type_checkers().keys()


def test_the_readmes_table_has_each_invariant_and_tells_which_have_a_marker() -> None:
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)\(.*\|([^|]*)\|[^|]*\|[^|]*\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(INVARIANTS)
    marked = {name for name, marker in rows if marker.strip() == "yes"}
    assert marked == {name for name, each in INVARIANTS.items() if each.marker is not None}


@pytest.mark.parametrize("name", INVARIANTS)
def test_a_markers_options_are_what_the_invariant_takes(name: str) -> None:
    invariant = getattr(pytest_bninvariants, name)
    assert invariant.__module__ == f"pytest_bninvariants.{INVARIANTS[name].module}"
    marker = INVARIANTS[name].marker
    if marker is not None:
        accepted = inspect.signature(invariant).parameters
        assert set(marker.options) <= accepted.keys()
        assert all(
            f"{option}=" in marker.signature for option in marker.accepted if option != "inputs"
        )


@pytest.mark.parametrize("name", INVARIANTS)
def test_each_invariant_has_a_fixture_of_its_name(name: str) -> None:
    assert getattr(fixtures, name).name == name
    assert INVARIANTS[name].fixture.partition("\n")[0].endswith("`.")
