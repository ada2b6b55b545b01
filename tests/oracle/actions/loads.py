"""Loads and averages: state that comes from elsewhere."""

from __future__ import annotations

import copy

import torch
from torch.optim.swa_utils import AveragedModel, update_bn

from tests.oracle.actions.registry import action
from tests.oracle.world import World


@action("loads")
def keep_state_by_reference(world: World) -> None:
    world.kept.append(world.model.state_dict())


@action("loads")
def keep_a_copy_of_state(world: World) -> None:
    world.kept.append(copy.deepcopy(world.model.state_dict()))


@action("loads")
def load_what_was_kept(world: World) -> object:
    if not world.kept:
        return None
    assign = world.pick.random() < 0.2
    return str(world.model.load_state_dict(world.pick.choice(world.kept), assign=assign))


@action("loads")
def load_its_own(world: World) -> object:
    return str(world.model.load_state_dict(world.model.state_dict()))


@action("loads")
def load_other_values(world: World) -> object:
    state = copy.deepcopy(world.model.state_dict())
    for value in state.values():
        if value.is_floating_point():
            value.add_(0.125)
    return str(world.model.load_state_dict(state))


@action("loads")
def load_a_part(world: World) -> object:
    part = world.module
    state = {name: torch.ones_like(value) for name, value in part.state_dict().items()}
    return str(part.load_state_dict(state))


@action("loads")
def make_an_average(world: World) -> None:
    world.copies.append(AveragedModel(world.model, use_buffers=world.pick.random() < 0.5))


@action("loads")
def make_a_copy(world: World) -> None:
    world.copies.append(copy.deepcopy(world.model))


@action("loads")
def update_averages(world: World) -> None:
    for average in world.copies:
        if isinstance(average, AveragedModel):
            average.update_parameters(world.model)


@action("loads")
def recompute_statistics(world: World) -> None:
    update_bn([world.batch, world.batch], world.model)


@action("loads")
def run_a_copy(world: World) -> object:
    return world.pick.choice(world.copies)(world.batch) if world.copies else None


@action("loads")
def put_a_copy_back(world: World) -> None:
    copies = [each for each in world.copies if not isinstance(each, AveragedModel)]
    if copies:
        other = world.pick.choice(copies)
        with torch.no_grad():
            for mine, theirs in zip(world.model.parameters(), other.parameters(), strict=True):
                mine.copy_(theirs)
