"""One of two processes that hold a model; it prints what in_sync said of it."""

from __future__ import annotations

import json
import os
import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pytest_bninvariants import InvariantBroken, in_sync


def told(model: nn.Module) -> str:
    try:
        in_sync(model, parameters=True)
    except InvariantBroken as failure:
        return " ".join(str(failure).split())
    return ""


def main(rank: int, port: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    found = {"built": told(model)}
    if rank == 1:  # a checkpoint that is loaded on one rank alone
        model[1].running_mean.fill_(7.0)
    found["loaded on one rank"] = told(model)
    found["wrapped"] = told(DistributedDataParallel(model))
    distributed.barrier()
    print(json.dumps(found), flush=True)
    os._exit(0)  # torch 2.4 may hang while it destroys a process group


main(int(sys.argv[1]), sys.argv[2])
