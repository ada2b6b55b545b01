"""One of two processes that exchange a frozen buffer; it prints what its guards said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pytest_bninvariants import FrozenStateChanged, frozen_bn


def told(model: nn.Module, step: Callable[[], object]) -> tuple[object, ...] | None:
    try:
        with frozen_bn(model):
            step()
    except FrozenStateChanged as failure:
        (cause,) = failure.verdict.causes
        return cause.name, cause.tensors, cause.place and cause.place.call
    return None


def main() -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential()
    model.linear, model.bn = nn.Linear(3, 4), nn.BatchNorm1d(4)
    model.eval()
    batch = torch.randn(5, 3)

    def wrap_and_run() -> None:
        DistributedDataParallel(model)(batch).sum().backward()

    def reduce() -> None:
        distributed.all_reduce(model.bn.running_mean)
        model(batch)

    found = {}
    for step in (wrap_and_run, reduce):
        model.bn.running_mean.fill_(float(rank) + 1)
        found[step.__name__] = told(model, step)
    distributed.barrier()
    print(json.dumps(found), flush=True)
    os._exit(0)  # torch 2.4 may hang while it destroys a process group


main()
