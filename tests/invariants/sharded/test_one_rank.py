"""What cannot be watched of sharded models is refused, here in a process group of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants import GateError, frozen, same_output

distributed: Any = pytest.importorskip("torch.distributed")
pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason="this torch has no torch.distributed"
)


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    store = distributed.HashStore()
    distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    distributed.destroy_process_group()


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).eval()


def test_a_part_that_would_become_the_root_is_not_run_first() -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no torch.distributed.fsdp.fully_shard")
    sharded, x = model(), torch.randn(3, 2)
    fsdp.fully_shard(sharded[0])
    fsdp.fully_shard(sharded)
    with pytest.raises(GateError, match=r"root, and '0' is a part of the model: run the model"):
        same_output(sharded, x, modules=["1", "0"]).start()
    for modules in ((), "0"):  # once the model ran, its parts may run alone
        with same_output(sharded, x, modules=modules) as guard:
            sharded(x)
        assert guard.verdict is not None
        assert guard.verdict.holds


def test_a_part_of_a_flat_parameter_is_watched_as_a_whole_or_without_parameters() -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    wrapped, x = (
        fsdp.FullyShardedDataParallel(model(), device_id=torch.device("cpu")),
        torch.ones(3, 2),
    )
    with pytest.raises(GateError, match=r"parameters of '1'.* are in a flat parameter"):
        frozen(wrapped, "1").start()
    for guard in (frozen(wrapped, "1", parameters=False), frozen(wrapped)):
        with guard:
            wrapped(x)
        assert guard.verdict is not None
        assert guard.verdict.holds
