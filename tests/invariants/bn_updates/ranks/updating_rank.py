"""One of two processes that train a model in DDP; it prints what its guards said."""

from __future__ import annotations

import json
import os
import sys

import torch
from torch import distributed, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from pytest_bninvariants import InvariantBroken, bn_updates


def told(model: nn.Module, batches: list[torch.Tensor]) -> list[str]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with bn_updates(model):
            for batch in batches:
                model(batch).sum().backward()
            optimizer.step()
    except InvariantBroken as failure:
        return [cause.name for cause in failure.verdict.causes]
    return []


def told_of_sharded_steps(model: nn.Module) -> list[str]:
    torch.optim.SGD(model.parameters())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    try:
        with bn_updates(model, per="optimizer_step"):
            for _ in range(2):
                model(torch.randn(5, 3)).sum().backward()
                optimizer.step()
    except InvariantBroken as failure:
        return [cause.name for cause in failure.verdict.causes]
    return []


def main(*, broadcast: bool) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = DistributedDataParallel(inner, broadcast_buffers=broadcast)
    torch.manual_seed(rank)
    inner[1].running_mean.fill_(float(rank))
    found = {
        "one": told(model, [torch.randn(5, 3)]),
        "two": told(model, [torch.randn(5, 3), torch.randn(5, 3)]),
        "sharded": told_of_sharded_steps(model),
    }
    distributed.barrier()
    print(json.dumps(found), flush=True)
    os._exit(0)  # torch 2.4 may hang while it destroys a process group


main(broadcast=sys.argv[1] == "1")
