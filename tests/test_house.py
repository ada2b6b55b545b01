"""The rules of the house that no linter knows: sizes, names, the mirror in tests, the map."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "pytest_bninvariants", ROOT / "tests"
FILES = sorted(file for top in (PACKAGE, TESTS) for file in top.rglob("*.py"))
FOLDERS = sorted({file.parent for file in FILES})
ROOMS = sorted(folder for folder in FOLDERS if folder.parent in (PACKAGE, PACKAGE / "invariants"))
TESTED_BY_SESSIONS = {PACKAGE / "conformance"}  # tests/plugin runs it as its users do


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def stem(file: Path) -> str:
    """Return a file's name without the endings by which one word becomes another form of itself."""
    words = file.stem.split("_")
    return "_".join(re.sub(r"(ing|ed|es|s|e)$", "", word) for word in words)


def test_a_folder_holds_at_most_14_python_files() -> None:
    counts = {name(folder): len(list(folder.glob("*.py"))) for folder in FOLDERS}
    assert {folder: count for folder, count in counts.items() if count > 14} == {}


def test_a_file_has_at_most_400_lines() -> None:
    counts = {name(file): file.read_text(encoding="utf-8").count("\n") for file in FILES}
    assert {file: count for file, count in counts.items() if count > 400} == {}


def test_no_two_files_of_a_folder_are_forms_of_one_word() -> None:
    stems = Counter((file.parent, stem(file)) for file in FILES)
    assert [name(folder / word) for (folder, word), count in stems.items() if count > 1] == []


@pytest.mark.parametrize(
    ("one", "other"), [("update", "updating"), ("test_averages", "test_average"), ("cases", "case")]
)
def test_forms_of_one_word_are_recognised(one: str, other: str) -> None:
    assert stem(Path(f"{one}.py")) == stem(Path(f"{other}.py"))


def test_no_two_classes_of_the_package_share_a_name() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name.lstrip("_")].append(name(file))
    assert {found: where for found, where in homes.items() if len(where) > 1} == {}


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_each_room_has_tests_of_its_own(room: Path) -> None:
    mirror = TESTS / room.relative_to(PACKAGE)
    assert room in TESTED_BY_SESSIONS or list(mirror.glob("test_*.py"))


@pytest.mark.parametrize("room", [room for room in ROOMS if room.parent == PACKAGE], ids=name)
def test_each_room_has_its_sentence_in_the_map(room: Path) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{room.name}` \| \S", page, re.MULTILINE)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*)`", (ROOT / page).read_text(encoding="utf-8"))
    assert named
    assert [each for each in named if not each.startswith("build/") and not is_there(each)] == []


def is_there(path: str) -> bool:
    return any((top / path).exists() for top in (ROOT, PACKAGE))
