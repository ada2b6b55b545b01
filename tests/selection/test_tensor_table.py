"""A table of tensors makes its rows when one is read."""

from __future__ import annotations

import torch

from pytest_bninvariants.selection.tensor_table import TensorTable, WatchedTensor

ROWS = {
    "a.x": WatchedTensor("module.a.x", "module.a", "parameter", torch.ones(1)),
    "b": WatchedTensor("module.b", "module", "buffer", torch.ones(2)),
}


def test_a_table_has_the_rows_that_it_was_made_of() -> None:
    table = TensorTable.from_mapping(ROWS)
    assert "_content" not in vars(table)
    assert (list(table), len(table)) == (["a.x", "b"], 2)
    assert "b" in table
    assert "c" not in table
    assert table.by_key == {key: row.tensor for key, row in ROWS.items()}
    assert "_content" not in vars(table)
    assert dict(table.items()) == ROWS
    assert [*table.values()] == [*ROWS.values()]
    assert table["b"] == ROWS["b"]
    assert table.columns.names == ["module.a.x", "module.b"]
    assert table.columns.layers == ["module.a", "module"]
    assert table.columns.kinds == ["parameter", "buffer"]
    assert TensorTable.from_mapping(table) is table
