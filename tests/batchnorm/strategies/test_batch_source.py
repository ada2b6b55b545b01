"""The code that a batch prints makes exactly its tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from pytest_bninvariants.batchnorm.cases import LAYOUTS, LEAST_DIMS, Batch
from pytest_bninvariants.batchnorm.strategies import DTYPES, bn_inputs
from tests.batchnorm.strategies.drawing import calm


def run(lines: list[str]) -> Tensor:
    names: dict[str, Any] = {"torch": torch}
    exec("\n".join(lines), names)
    made: Tensor = names["x"]
    return made


SHORT = {2: (4, 3), 3: (2, 3, 5), 4: (2, 2, 2, 3), 5: (2, 2, 2, 1, 3)}
LONG = {2: (90, 3), 3: (8, 5, 17), 4: (8, 3, 5, 7), 5: (5, 4, 3, 4, 5)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", [2, 3, 4, 5])
@pytest.mark.parametrize("shapes", [SHORT, LONG], ids=["short", "long"])
def test_the_source_of_a_batch_makes_exactly_its_tensor(
    shapes: dict[int, tuple[int, ...]], dims: int, layout: str, dtype: str
) -> None:
    if dims < LEAST_DIMS.get(layout, 2):
        pytest.skip(f"{layout} is a layout of {LEAST_DIMS[layout]} or more dimensions")
    for seed in (0, 7):
        kappa = 1e3 if dtype != "float16" else 30.0
        batch = Batch(
            shape=shapes[dims], seed=seed, sigma=1e-5**0.5, kappa=kappa, layout=layout, dtype=dtype
        )
        x, made = batch.tensor(), run(batch.source())
        assert ("randn" in "\n".join(batch.source())) == (shapes is LONG)
        assert made.dtype == x.dtype
        assert torch.equal(made, x)
        assert made.stride() == x.stride()
        assert made.storage_offset() == x.storage_offset()


@given(batch=st.integers(2, 5).flatmap(lambda dims: bn_inputs(dims=dims)))
@calm
def test_the_source_of_a_drawn_batch_makes_exactly_its_tensor(batch: Batch) -> None:
    x, made = batch.tensor(), run(batch.source())
    assert torch.equal(made, x)
    assert (made.dtype, made.shape, made.stride()) == (x.dtype, x.shape, x.stride())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_no_value_but_where_values_share_memory(layout: str) -> None:
    plain, laid = Batch(shape=(4, 3, 2, 5)), Batch(shape=(4, 3, 2, 5), layout=layout)
    expected = plain.tensor()
    if layout == "expanded":
        expected = expected[:1].expand(4, 3, 2, 5)
    if layout == "one_channel":
        expected = expected[:, :1].expand(4, 3, 2, 5)
    if layout == "windows":
        signal = expected.flatten()
        expected = torch.stack([signal[i : i + 30].view(3, 2, 5) for i in range(4)])
    assert torch.equal(laid.tensor(), expected)
    dense = layout in ("contiguous", "offset")
    assert laid.tensor().is_contiguous() == dense
