"""Whatever flips one bit of a watched tensor is found, exactly or by fingerprint."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pytest_bninvariants.run_config import override
from pytest_bninvariants.snapshot import fingerprints
from tests.snapshot.flips import LEAVING, WAYS, Holder, alarmed, missed

pytestmark = pytest.mark.filterwarnings("ignore")
TIMES = 3


@pytest.fixture(params=["exact", "xxhash", "torch operators"])
def keeping(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "exact":
        yield request.param
        return
    if request.param == "xxhash":
        pytest.importorskip("xxhash")
    else:
        monkeypatch.setattr(fingerprints, "_xxhash", lambda: None)
    with override(snapshot_budget=0):
        yield request.param


@pytest.mark.parametrize("way", WAYS)
def test_one_flipped_bit_is_found_by_whatever_way_it_was_written(way: str, keeping: str) -> None:
    torch.manual_seed(0)
    numbers = random.Random(f"{way}, {keeping}")
    model = Holder()
    assert [failure for _ in range(TIMES) if (failure := missed(model, way, numbers))] == []


@pytest.mark.parametrize("way", LEAVING)
def test_a_step_that_leaves_every_bit_is_no_alarm(way: str, keeping: str) -> None:
    model = Holder()
    assert not any(alarmed(model, way) for _ in range(TIMES))
