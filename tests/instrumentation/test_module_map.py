"""Values of modules, by identity, while the modules live."""

from __future__ import annotations

import gc

from torch import nn

from pytest_bninvariants.instrumentation.module_map import ModuleMap


def test_a_module_has_its_value_until_it_dies() -> None:
    values: ModuleMap[str] = ModuleMap()
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    values.add(first, "a")
    values.add(first, "b")
    assert (values.get(first), values.get(second), values.get(None)) == ("b", None, None)
    assert first in values
    assert second not in values
    del first
    gc.collect()
    assert not values._entries
