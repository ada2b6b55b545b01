"""Writes to tensors by all the ways there are, and what leaves every bit as it was."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracle.actions.registry import action
from tests.oracle.world import World
from tests.snapshot.flips import WAYS, draw


@action("writes")
def flip_a_bit(world: World) -> str:
    way = world.pick.choice(list(WAYS))
    for _ in range(20):
        name, flip = draw(world.model, world.pick)
        if not flip.tensor.is_complex() and flip.tensor.is_contiguous():
            with torch.no_grad():
                WAYS[way](flip)
            return f"{name} by {way}"
    return "nothing"


def a_tensor(world: World) -> Tensor:
    tensors = [*world.model.parameters(), *world.model.buffers()]
    return world.pick.choice([each for each in tensors if each.numel()])


@action("writes")
def fill_a_tensor(world: World) -> None:
    with torch.no_grad():
        a_tensor(world).fill_(1)


@action("writes")
def write_there_and_back(world: World) -> None:
    tensor = a_tensor(world)
    with torch.no_grad():
        old = tensor.clone()
        tensor.fill_(1)
        tensor.copy_(old)


@action("writes")
def move_memory(world: World) -> None:
    tensor = a_tensor(world)
    tensor.data = tensor.data.clone()


@action("writes")
def spoil_statistics(world: World) -> None:
    norm = world.norm
    mean = getattr(norm, "running_mean", None)
    if mean is not None:
        mean[0] = world.pick.choice((float("nan"), 3.0))
