"""Run a small guard on a torch that lacks a private name, for each of these names by itself.

One process imports torch, then a fork for each name takes it away and imports the engine.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch
import torch._dynamo
import torch.distributed
from torch import nn

Outcome = tuple[str, str]


class Missing:
    """Hide an attribute that a base class defines."""

    def __get__(self, instance: object, owner: type) -> None:
        raise AttributeError


@contextmanager
def taken_away(path: str) -> Iterator[None]:
    """Remove a name from torch for a while; torch itself may need it afterwards."""
    module, _, names = path.partition(":")
    *owners, last = names.removesuffix(".__get__").removesuffix(".__code__").split(".")
    owner: Any = resolve_name(f"{module}:{'.'.join(owners)}" if owners else module)
    value = getattr(owner, last)
    if owner is torch.Tensor:
        setattr(owner, last, Missing())
    else:
        delattr(owner, last)
    yield
    if owner is torch.Tensor:
        delattr(owner, last)
    else:
        setattr(owner, last, value)


def guard_a_step() -> Outcome:
    """Return how guards judge a step that moves a layer, and one that does not."""
    from pytest_bninvariants import FrozenStateChanged, GateError, frozen_bn

    net, batch = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.randn(4, 2)
    try:
        with frozen_bn(net.eval()) as still:
            net(batch)
        with suppress(FrozenStateChanged), frozen_bn(net.eval()) as moving:
            net.train()(batch)
    except GateError as error:
        return "refused", str(error)
    right = still.verdict.holds and moving.verdict.changed_layers == ("1",)
    return ("judged" if right else "misjudged"), str(moving.verdict)


def trace_a_step() -> Outcome:
    """Return whether a trace begins."""
    from pytest_bninvariants import GateError
    from pytest_bninvariants.trace.tracer import Tracer

    try:
        tracer = Tracer({})
        tracer.start()
    except GateError as error:
        return "refused", str(error)
    torch.ones(1).add_(1)
    tracer.stop()
    return "judged", ""


def in_fork(function: Callable[[], Outcome]) -> Outcome:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            outcome = function()
        except BaseException as error:
            outcome = "failed", repr(error)
        os.write(writing, json.dumps(outcome)[:4000].encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as told:
        return tuple(json.loads(told.read()))


def without(path: str) -> Outcome:
    with taken_away(path):
        import pytest_bninvariants.invariants.frozen.guard
        import pytest_bninvariants.trace.tracer  # noqa: F401
    judged = guard_a_step()
    return trace_a_step() if judged[0] == "judged" else judged


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    outcomes = {path: in_fork(partial(without, path)) for path in sys.argv[1:]}
    print(json.dumps(outcomes))
