"""A batch is cut along dimension 0, whatever its nesting, and copied without what it hangs on."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from typing import Any

import pytest
import torch

from pytest_bninvariants import GateError
from pytest_bninvariants.evaluation.batches import cast_batch, samples_in, split_batch

Pair = namedtuple("Pair", ["x", "y"])
x, y = torch.arange(10.0).view(5, 2), torch.arange(5)
NESTS = [
    x,
    (x, y),
    [x, (y, None)],
    Pair(x, {"y": y, "name": "train"}),
    OrderedDict(x=x, scale=torch.tensor(2.0)),
    UserDict(x=x, flag=True, rate=0.5),
]


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if hasattr(value, "values") else value
    return [t for part in parts if not isinstance(part, str) for t in tensors(part or ())]


@pytest.mark.parametrize("nest", NESTS, ids=lambda nest: type(nest).__name__)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_parts_put_together_are_the_batch(nest: Any, k: int) -> None:
    parts = split_batch(nest, k)
    sizes = [samples_in(part) for part in parts]
    assert len(parts) == k
    assert sum(sizes) == samples_in(nest) == 5
    assert max(sizes) - min(sizes) <= 1
    assert {type(part) for part in parts} == {type(nest)}


def test_values_keep_their_order_and_what_has_no_samples_is_whole() -> None:
    first, second = split_batch({"x": x, "scale": torch.tensor(2.0), "name": "train"}, 2)
    assert torch.equal(torch.cat((first["x"], second["x"])), x)
    assert first["scale"] == second["scale"] == 2
    assert first["name"] == second["name"] == "train"


def test_a_converted_batch_shares_nothing_with_the_users() -> None:
    leaf = torch.ones(3, 2, requires_grad=True)
    floats, whole = cast_batch((leaf, y), torch.float64)
    assert floats.dtype == torch.float64
    assert floats.is_leaf
    assert floats.requires_grad
    assert whole.dtype == torch.int64
    whole.zero_()
    cast_batch((leaf, y), torch.float32)[0].data.zero_()
    assert y[-1] == 4
    assert leaf.sum() == 6


def test_unknown_nesting_is_refused_by_its_type() -> None:
    with pytest.raises(GateError, match=r"tuples, lists and mappings; it holds .* \(object\)"):
        split_batch((x, object()), 2)
