"""A moving average of the model, updated rightly, in part, or by another decay."""

from __future__ import annotations

import copy

import torch

from tests.oracle.actions.registry import action
from tests.oracle.world import World

DECAY = 0.75


def move(world: World, decay: float) -> None:
    with torch.no_grad():
        for mine, theirs in zip(world.teacher.parameters(), world.model.parameters(), strict=True):
            mine.mul_(decay).add_(theirs, alpha=1 - decay)


def copy_buffers(world: World) -> None:
    for mine, theirs in zip(world.teacher.buffers(), world.model.buffers(), strict=True):
        mine.copy_(theirs)


@action("averages")
def make_a_teacher(world: World) -> None:
    world.teacher = copy.deepcopy(world.model).requires_grad_(False)


@action("averages")
def update_the_teacher(world: World) -> None:
    move(world, DECAY)
    copy_buffers(world)


@action("averages")
def update_the_teachers_parameters(world: World) -> None:
    move(world, DECAY)


@action("averages")
def update_the_teacher_with_another_decay(world: World) -> None:
    move(world, 0.5)
    copy_buffers(world)
