"""Faults are put where a test could notice, and are known by their line."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray")

from tests.mutations import faults as faults_module, results
from tests.mutations.faults import Fault, Outline, faults
from tests.mutations.rooms import ROOMS, room

SOURCE = """
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    LEVEL = 1
Value = int | None


@dataclass(frozen=True)
class Pair:
    left: int | None


def names(*, all_of: list[int] | None) -> str | None:
    assert all_of is not None
    total: int | str = all_of[0]
    print(total)
    return any(x in all_of for x in zip(all_of, strict=True))
"""


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Fault]:
    monkeypatch.setattr(faults_module, "ROOT", tmp_path)
    path = tmp_path / "package" / "names.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return faults(path)


def test_what_only_declares_is_left_alone(found: list[Fault]) -> None:
    assert sorted((fault.operator, fault.line.partition("(")[0]) for fault in found) == [
        ("NegateMembership", "return any"),
        ("NumberReplacer", "total: int | str = all_of[0]"),
        ("NumberReplacer", "total: int | str = all_of[0]"),
        ("RemoveStatement", "print"),
        ("SwapFunction", "return any"),
    ]


def test_a_fault_changes_one_place(found: list[Fault]) -> None:
    sources = {fault.operator: fault.source() for fault in found}
    assert sources["RemoveStatement"] == SOURCE.replace("print(total)", "pass")
    assert sources["SwapFunction"] == SOURCE.replace("any(x", "all(x")
    assert sources["NegateMembership"] == SOURCE.replace("x in all_of for", "x not in all_of for")


def test_a_key_outlives_edits_above(found: list[Fault], tmp_path: Path) -> None:
    path = tmp_path / "package" / "moved" / "names.py"
    path.parent.mkdir()
    path.write_text(f"import os\n{SOURCE}")
    keys = [fault.key.replace("package.moved.", "package.") for fault in faults(path)]
    assert keys == [fault.key for fault in found]
    assert len({fault.digest for fault in found}) == len(found)


def test_a_test_need_not_run_a_function_to_notice_a_fault_of_its_decorator() -> None:
    outline = Outline(
        "@checked(1)\n@cache\ndef f():\n    return 1\n\n@checked(2)\ndef g(): return 2\n"
    )
    places = [outline.place(line) for line in (1, 4, 5, 6, 7)]
    assert places == [("f", None), ("f", None), ("", None), ("g", None), ("g", "g:0")]


def test_each_fault_that_is_listed_as_equivalent_is_still_there() -> None:
    listed = results.equivalents()
    modules = {key.partition(":")[0] for key in listed}
    there = {
        fault.key
        for name in ROOMS
        for path in room(name).modules
        if ".".join(path.relative_to(faults_module.ROOT).with_suffix("").parts) in modules
        for fault in faults(path)
    }
    assert sorted(listed.keys() - there) == []
