"""The map from rooms to tests is whole."""

from __future__ import annotations

import pytest

from tests.mutations.rooms import PACKAGE, ROOMS, ROOT, room

DECIDING = ["selection", "snapshot", "instrumentation", "state_change", "trace", "invariants"]
DECIDING += ["audit", "batchnorm", "plugin"]


@pytest.mark.parametrize("name", DECIDING)
def test_each_module_of_the_rooms_that_decide_is_in_one_room_of_the_map(name: str) -> None:
    modules = [module for each in ROOMS for module in room(each).modules]
    there = [file for file in (ROOT / PACKAGE / name).rglob("*.py") if file.name != "__init__.py"]
    assert there
    assert [file.name for file in there if modules.count(file) != 1] == []


@pytest.mark.parametrize("name", ROOMS)
def test_the_tests_that_the_map_names_exist(name: str) -> None:
    tests = room(name).tests
    assert tests
    assert [str(file) for file in tests if not file.is_file()] == []
    assert all((ROOT / "tests" / path).exists() for path in ROOMS[name])
