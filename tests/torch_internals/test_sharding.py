"""What FSDP keeps is found by its private attributes, on each torch that has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from pytest_bninvariants.torch_internals import sharding

fsdp = pytest.importorskip("torch.distributed.fsdp")


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def sharded() -> Any:
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no torch.distributed.fsdp.fully_shard")
    return fsdp.fully_shard(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))


def test_gathered_parameters_lead_to_their_shards(sharded: Any) -> None:
    shards = list(sharded.parameters())
    assert sharding.stored_parameters(sharded.modules()) == {}
    assert sharding.awaits_root(sharded)
    with torch.no_grad():
        sharded(torch.ones(1, 2))
    assert not any(map(sharding.is_shard, sharded.parameters()))
    stored = sharding.stored_parameters(sharded.modules())
    assert list(map(id, stored.values())) == list(map(id, shards))
    assert sharding.gathered_modules(sharded.modules()) == [sharded]
    assert not sharding.awaits_root(sharded)
    sharded.reshard()
    assert sharding.stored_parameters(sharded.modules()) == {}
    assert sharding.gathered_modules(sharded.modules()) == []


def test_a_part_of_a_model_is_enough_to_find_its_shards(sharded: Any) -> None:
    with torch.no_grad():
        sharded(torch.ones(1, 2))
    part = sharded[0]
    assert {name for _, name in sharding.stored_parameters([part])} == {"weight", "bias"}
    assert id(part) in sharding.modules_with_shards([part])


def test_a_flat_parameter_names_the_modules_that_it_hides() -> None:
    model = fsdp.FullyShardedDataParallel(
        nn.Sequential(nn.Linear(2, 3), nn.ReLU()), device_id=torch.device("cpu")
    )
    ((flat, owners),) = sharding.flat_parameters(model.modules())
    assert owners == {id(model.module[0])}
    assert [flat is each for each in model.parameters()] == [True]


def test_a_model_without_shards_has_none() -> None:
    model = nn.Linear(2, 1)
    assert id(model) not in {owner for owner, _ in sharding.stored_parameters([model])}
    assert sharding.shards_by_id([model]) == {}
    assert sharding.shard_of(model.weight) == ()
    assert sharding.local_tensor(model.weight) is model.weight
