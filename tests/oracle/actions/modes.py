"""Modes, and what else decides how a layer normalises."""

from __future__ import annotations

from torch import nn

from tests.oracle.actions.registry import action
from tests.oracle.world import World


@action("modes")
def train_the_model(world: World) -> None:
    world.model.train()


@action("modes")
def eval_the_model(world: World) -> None:
    world.model.eval()


@action("modes")
def train_a_part(world: World) -> None:
    world.module.train()


@action("modes")
def eval_a_part(world: World) -> None:
    world.module.eval()


@action("modes")
def set_a_mode(world: World) -> None:
    world.norm.training = world.pick.random() < 0.5


@action("modes")
def eval_all_norms(world: World) -> None:
    for norm in world.norms:
        norm.eval()


@action("modes")
def freeze_or_thaw_a_part(world: World) -> None:
    world.module.requires_grad_(world.pick.random() < 0.5)


@action("modes")
def freeze_or_thaw_a_parameter(world: World) -> None:
    world.parameter.requires_grad = world.pick.random() < 0.5


@action("settings")
def set_momentum(world: World) -> None:
    world.norm.momentum = world.pick.choice((0.0, 0.1, 0.5, 1.0, None))


@action("settings")
def set_eps(world: World) -> None:
    world.norm.eps = world.pick.choice((1e-5, 1e-3))


@action("settings")
def stop_or_go_on_tracking(world: World) -> None:
    norm = world.norm
    if isinstance(norm, nn.modules.batchnorm._NormBase):
        norm.track_running_stats = not norm.track_running_stats


@action("settings")
def reset_a_norm(world: World) -> None:
    norm = world.norm
    if isinstance(norm, nn.modules.batchnorm._NormBase):
        norm.reset_running_stats()


@action("settings")
def initialise_a_norm(world: World) -> None:
    norm = world.norm
    if isinstance(norm, nn.modules.batchnorm._NormBase):
        norm.reset_parameters()
