"""Updates are counted in groups, of which only the sizes are kept."""

from __future__ import annotations

from collections import Counter

from pytest_bninvariants.invariants.bn_updates.update_groups import UpdateGroups
from tests.invariants.bn_updates.results.builder import groups


def test_groups_are_counted_by_their_sizes() -> None:
    some = groups(2, 1, 2)
    assert some.counts == Counter({2: 2, 1: 1})
    assert (some.number, some.largest, some.common_size) == (3, 2, None)
    assert (groups(2, 2).common_size, groups(1).common_size) == (2, 1)
    none = groups()
    assert (none.number, none.largest, none.common_size) == (0, 0, None)


def test_only_the_latest_group_can_be_dropped() -> None:
    some = groups(2, 1)
    some.drop(0)
    assert some.number == 2
    some.drop(1)
    assert (some.number, some.largest) == (1, 2)
    some.add(1)
    assert some.counts == Counter({2: 1, 1: 1})
    empty = UpdateGroups()
    empty.add("a")
    assert (empty.number, empty.latest) == (1, 1)
