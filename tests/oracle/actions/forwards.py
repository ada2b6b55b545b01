"""Forwards and backwards, as people run them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from tests.oracle.actions.registry import action
from tests.oracle.layers import CHANNELS, LENGTH
from tests.oracle.world import World


def backward(loss: Tensor) -> None:
    if loss.requires_grad:
        loss.backward()


@action("forwards")
def forward(world: World) -> Tensor:
    return world.model(world.batch)


@action("forwards")
def forward_without_grad(world: World) -> Tensor:
    with torch.no_grad():
        return world.model(world.batch)


@action("forwards")
def forward_in_inference_mode(world: World) -> Tensor:
    with torch.inference_mode():
        return world.model(world.batch).clone()


@action("forwards")
def forward_under_autocast(world: World) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return world.model(world.batch)


@action("forwards")
def forward_of_a_norm(world: World) -> Tensor:
    return world.norm(world.batch)


@action("forwards")
def forward_method_of_a_part(world: World) -> object:
    part = world.pick.choice([m for m in world.modules if not list(m.children())])
    return None if part in world.norms else part.forward(world.batch)


@action("forwards")
def validate(world: World) -> Tensor:
    was = world.model.training
    world.model.eval()
    with torch.no_grad():
        output = world.model(world.batch)
    world.model.train(was)
    return output


@action("forwards")
def forward_of_one_value_a_channel(world: World) -> Tensor:
    return world.model(torch.ones(1, CHANNELS, 1))


@action("forwards")
def forward_of_a_wrong_shape(world: World) -> Tensor:
    return world.model(torch.ones(2, CHANNELS + 1, LENGTH))


@action("forwards")
def forward_that_overflows(world: World) -> Tensor:
    return world.model(torch.full((2, CHANNELS, LENGTH), float("inf")))


@action("backwards")
def forward_and_backward(world: World) -> Tensor:
    loss = world.model(world.batch).square().mean()
    backward(loss)
    return loss


@action("backwards")
def checkpointed_forward_and_backward(world: World) -> Tensor:
    batch = world.batch.requires_grad_()
    use_reentrant = world.pick.random() < 0.5
    loss = checkpoint(world.model, batch, use_reentrant=use_reentrant).square().mean()
    backward(loss)
    return loss


@action("backwards")
def accumulate_over_two_batches(world: World) -> None:
    for _ in range(2):
        backward(world.model(world.batch).square().mean() / 2)


@action("backwards")
def keep_a_loss(world: World) -> Tensor:
    loss = world.model(world.batch).square().mean()
    world.losses.append(loss)
    return loss


@action("backwards")
def backward_of_a_kept_loss(world: World) -> None:
    if world.losses:
        backward(world.losses.pop())


@action("backwards")
def call_functionally_with_its_own(world: World) -> Tensor:
    return functional_call(world.model, dict(world.model.named_parameters()), (world.batch,))


@action("backwards")
def call_functionally_with_others(world: World) -> Tensor:
    others = {n: t.detach().clone() for n, t in world.model.named_parameters()}
    others |= {n: t.clone() for n, t in world.model.named_buffers()}
    return functional_call(world.model, others, (world.batch,))
