"""The audit finds leaks in models that DDP and fully_shard wrap, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tests.audit.audits import leaks_of
from tests.invariants.sharded.models import optimizer_of, pair, train, train_with_eval_forgotten


def shard(model: nn.Module) -> Any:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no torch.distributed.fsdp.fully_shard")
    return fsdp.fully_shard(model)


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", [DistributedDataParallel, shard])
@pytest.mark.parametrize("leaks", [True, False])
def test_a_leak_is_found_through_a_wrapper(wrap: Callable[[Any], Any], leaks: bool) -> None:
    def step() -> None:
        model = wrap(pair())
        optimizer = optimizer_of(model)
        for _ in range(2):
            (train_with_eval_forgotten if leaks else train)(model, optimizer)

    assert leaks_of(step) == ([("teacher.1",)] if leaks else [])
