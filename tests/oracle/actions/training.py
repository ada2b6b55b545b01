"""Optimizers in their forms, and steps by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from tests.oracle.actions.forwards import backward
from tests.oracle.actions.registry import action
from tests.oracle.world import World

MAKERS: list[Callable[[Iterable[Any]], optim.Optimizer]] = [
    lambda p: optim.SGD(p, lr=0.1),
    lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: optim.SGD(p, lr=0.1, weight_decay=0.1),
    lambda p: optim.SGD(p, lr=0.0),
    lambda p: optim.AdamW(p, lr=0.1, weight_decay=0.1),
    lambda p: optim.Adam(p, lr=0.1, foreach=False),
    lambda p: optim.RMSprop(p, lr=0.01),
    lambda p: optim.Adagrad(p, lr=0.1),
    lambda p: optim.Adam([{"params": [each]} for each in p], lr=0.01, amsgrad=True),
]


@action("training")
def make_an_optimizer_of_all(world: World) -> None:
    maker = world.pick.choice(MAKERS)
    world.optimizers.append(maker(list(world.model.parameters())))


@action("training")
def make_an_optimizer_of_what_trains(world: World) -> None:
    maker = world.pick.choice(MAKERS)
    trained = [each for each in world.model.parameters() if each.requires_grad]
    if trained:
        world.optimizers.append(maker(trained))


@action("training")
def make_an_optimizer_of_a_part(world: World) -> None:
    maker = world.pick.choice(MAKERS)
    parameters = list(world.module.parameters())
    if parameters:
        world.optimizers.append(maker(parameters))


@action("training")
def step(world: World) -> None:
    if world.optimizers:
        world.pick.choice(world.optimizers).step()


@action("training")
def step_with_a_closure(world: World) -> object:
    if not world.optimizers:
        return None
    optimizer = world.pick.choice(world.optimizers)
    batch = world.batch

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = world.model(batch).square().mean()
        backward(loss)
        return loss

    return optimizer.step(closure)


@action("training")
def train_one_batch(world: World) -> object:
    if not world.optimizers:
        make_an_optimizer_of_all(world)
    optimizer = world.optimizers[-1]
    optimizer.zero_grad()
    loss = world.model(world.batch).square().mean()
    backward(loss)
    optimizer.step()
    return loss


@action("training")
def zero_gradients(world: World) -> None:
    world.model.zero_grad(set_to_none=world.pick.random() < 0.5)


@action("training")
def make_gradients_of_zeros(world: World) -> None:
    for parameter in world.model.parameters():
        parameter.grad = torch.zeros_like(parameter)


@action("training")
def clip_gradients(world: World) -> object:
    return nn.utils.clip_grad_norm_(world.model.parameters(), 0.1)


@action("training")
def step_by_hand(world: World) -> None:
    with torch.no_grad():
        for parameter in world.model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)


@action("training")
def clip_weights(world: World) -> None:
    for parameter in world.model.parameters():
        parameter.data.clamp_(-0.5, 0.5)


@action("training")
def drop_the_optimizers(world: World) -> None:
    world.optimizers.clear()
