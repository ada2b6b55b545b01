"""Conversions, replacements, copies and wrappers: a model that is taken apart and put together."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from torch import Tensor, nn

from tests.oracle.actions.registry import action
from tests.oracle.layers import FrozenNorm
from tests.oracle.models import OwnWrapper
from tests.oracle.world import World


def replace(world: World, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, wherever the model holds it."""
    for parent in list(world.model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


@action("conversions")
def replace_a_norm_by_its_copy(world: World) -> None:
    norm = world.norm
    replace(world, norm, copy.deepcopy(norm))


@action("conversions")
def replace_a_norm_by_a_new_one(world: World) -> None:
    replace(world, world.norm, nn.BatchNorm1d(3))


@action("conversions")
def replace_a_norm_by_a_frozen_one(world: World) -> None:
    norm, new = world.norm, FrozenNorm()
    state = {n: v for n, v in norm.state_dict().items() if n in new.state_dict()}
    new.load_state_dict(state, strict=False)
    replace(world, norm, new)


@action("conversions")
def take_a_norm_out(world: World) -> None:
    if len(world.norms) > 1:
        replace(world, world.norm, nn.Identity())


@action("conversions")
def convert_to_sync(world: World) -> None:
    inner = dict(world.model.named_children()).get("module", world.model)
    inner.blocks = nn.SyncBatchNorm.convert_sync_batchnorm(inner.blocks)


@action("conversions")
def to_double_and_back(world: World) -> None:
    world.module.double().float()


@action("conversions")
def to_half_and_back(world: World) -> None:
    world.module.half().float()


@action("conversions")
def wrap_a_block(world: World) -> None:
    inner = dict(world.model.named_children()).get("module", world.model)
    at = world.pick.randrange(len(inner.blocks))
    if not isinstance(inner.blocks[at], OwnWrapper):
        inner.blocks[at] = OwnWrapper(inner.blocks[at])


@action("conversions")
def add_a_block(world: World) -> None:
    inner = dict(world.model.named_children()).get("module", world.model)
    if len(inner.blocks) < 5:
        inner.blocks.append(nn.BatchNorm1d(3))


@action("conversions")
def add_or_drop_a_buffer(world: World) -> None:
    tables = next(m for n, m in world.model.named_modules() if n.endswith("tables"))
    if "extra" in tables._buffers:
        del tables.extra
    else:
        tables.register_buffer("extra", torch.ones(2))


@action("conversions")
def put_an_equal_buffer(world: World) -> None:
    norm = world.norm
    for name, buffer in list(norm.named_buffers(recurse=False)):
        setattr(norm, name, buffer.clone())


@action("conversions")
def put_an_equal_parameter(world: World) -> None:
    part = world.module
    for name, parameter in list(part.named_parameters(recurse=False)):
        copied = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        setattr(part, name, copied)


@action("conversions")
def tie_or_untie_weights(world: World) -> None:
    convs = [m for m in world.model.modules() if isinstance(m, nn.Conv1d)]
    one, other = world.pick.choice(convs), world.pick.choice(convs)
    tied = other.weight is one.weight
    other.weight = nn.Parameter(one.weight.detach().clone()) if tied else one.weight


@action("conversions")
def run_a_deep_copy(world: World) -> Tensor:
    return copy.deepcopy(world.model)(world.batch)


@action("conversions")
def run_a_pickled_copy(world: World) -> Tensor:
    return pickle.loads(pickle.dumps(world.model))(world.batch)


@action("conversions")
def save_and_load_a_file(world: World) -> object:
    file = io.BytesIO()
    torch.save(world.model.state_dict(), file)
    file.seek(0)
    return str(world.model.load_state_dict(torch.load(file)))


@action("conversions")
def add_or_drop_a_hook(world: World) -> None:
    part = world.module
    if part._forward_hooks:
        part._forward_hooks.clear()
    else:
        part.register_forward_hook(_halve)


def _halve(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output * 0.5


@action("conversions")
def add_a_hook_that_raises(world: World) -> object:
    part = world.module
    hook = part.register_forward_hook(_fail)
    try:
        return world.model(world.batch)
    finally:
        hook.remove()


def _fail(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    raise RuntimeError("out of memory, say")


@action("rare")
def run_compiled(world: World) -> Tensor:
    batch, model = world.batch, world.model
    try:
        return torch.compile(model, backend="eager")(batch)
    finally:
        vars(model).pop("_is_torch_compile", None)  # the bare run is not compiled


@action("rare")
def run_in_a_compiled_function(world: World) -> Tensor:
    batch, model = world.batch, world.model

    def run(batch: Tensor) -> Tensor:
        return model(batch)

    return torch.compile(run, backend="eager")(batch)


@action("rare")
def trace_it_and_run(world: World) -> Tensor:
    traced = torch.jit.trace(world.model, (world.batch,), check_trace=False)
    return traced(world.batch)
