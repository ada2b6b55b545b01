"""Find where FSDP keeps parameters while a model holds gathered copies of them.

Both generations of FSDP put gathered parameters into a module for as long as it computes, and
sometimes for longer: `fully_shard` leaves those of the root there after its forward. An optimizer,
a checkpoint and the next forward go by the shards. Only `whole_tensor` starts a collective.

What FSDP knows of its parameters is in private attributes of its objects: `_fsdp_param_groups`,
`_fsdp_param_group`, `fsdp_params`, `_unsharded_param`, `sharded_param`, `_module_info` and
`_is_root` of `fully_shard`, and `_handle`, `flat_param`, `_params`, `_param_infos` and
`_fsdp_flattened` of FullyShardedDataParallel. Where a torch lacks one, parameters are taken as the
modules hold them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from pytest_bninvariants.torch_internals.private_api import find

Slot = tuple[int, str]
"""The id of a module, and the name of one of its parameters."""
Shard = tuple[tuple[str, int | None], ...]
"""Which part of a tensor a rank holds; empty if it holds the whole."""

_module_states: Any = find(
    "torch.distributed._composable_state:_module_state_mapping",
    used_for="finding the shards of what fully_shard has gathered",
    without="gathered parameters are compared, so that a model has to be sharded at both ends",
    default={},
)


def stored_parameters(modules: Iterable[nn.Module]) -> dict[Slot, Tensor]:
    """Return the parameters that FSDP keeps for slots that hold gathered copies now.

    Args:
        modules: the modules of a model.
    """
    stored: dict[Slot, Tensor] = {}
    for state in _fsdp2_states():
        stored.update(_gathered_by_fsdp2(state))
    for module in _fsdp1_modules(modules):
        stored.update(_gathered_by_fsdp1(module))
    return stored


def modules_with_shards(modules: Iterable[nn.Module]) -> set[int]:
    """Return the ids of the modules whose parameters FSDP replaces as they compute.

    Args:
        modules: the modules of a model.
    """
    owners = {id(owner) for state in _fsdp2_states() for owner in _owners_in(state)}
    for module in _fsdp1_modules(modules):
        infos = getattr(_flat_parameter_of(module), "_param_infos", None) or ()
        owners |= {id(owner) for _, owner, _ in infos}
    return owners


def gathered_modules(modules: Iterable[nn.Module]) -> list[Any]:
    """Return the modules under `fully_shard` that hold gathered parameters now."""
    gathered = {id(each) for each in _fsdp2_states() if any(True for _ in _gathered_by_fsdp2(each))}
    if not gathered:
        return []
    return [module for module in modules if id(_state_of(module)) in gathered]


def _state_of(module: nn.Module) -> Any:
    state = _module_states.get(module)
    return state() if callable(state) else state


def _owners_in(state: Any) -> Iterator[nn.Module]:
    """Yield the modules that own the parameters of a state of `fully_shard`."""
    for group in _groups_of(state):
        for parameter in getattr(group, "fsdp_params", ()):
            for module, _ in _slots_of(parameter):
                yield module


def _slots_of(parameter: Any) -> list[tuple[nn.Module, str]]:
    """Return the modules and names that hold one parameter of `fully_shard`."""
    info = getattr(parameter, "_module_info", None)
    if info is None:
        return []
    shared = zip(info.shared_modules, info.shared_param_names, strict=True)
    return [(info.module, info.param_name), *shared]


def _fsdp1_modules(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the modules that FullyShardedDataParallel wraps; most models have none."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # every guard asks: import nothing here
    wrapper = getattr(fsdp, "FullyShardedDataParallel", None)
    if wrapper is None:
        return []
    known = list(modules)
    sharded = {each for each in set(map(type, known)) if issubclass(each, wrapper)}
    return [module for module in known if type(module) in sharded] if sharded else []


def _flat_parameter_of(module: nn.Module) -> Any:
    """Return the flat parameter of a FullyShardedDataParallel; None of any other module."""
    return getattr(vars(module).get("_handle"), "flat_param", None)


def _fsdp2_states() -> list[Any]:
    """Return the state of each call of `fully_shard` whose modules live."""
    known = list(_module_states.values())
    states = [each() if callable(each) else each for each in known]
    return list({id(each): each for each in states if each is not None}.values())


def _groups_of(state: Any) -> list[Any]:
    """Return the groups of parameters that a state of `fully_shard` gathers together."""
    several = getattr(state, "_fsdp_param_groups", None)  # torch 2.13 has more than one
    if several is not None:
        return list(several)
    one = getattr(state, "_fsdp_param_group", None)
    return [] if one is None else [one]


def _gathered_by_fsdp2(state: Any) -> Iterator[tuple[Slot, Tensor]]:
    for group in _groups_of(state):
        for parameter in getattr(group, "fsdp_params", ()):
            gathered = getattr(parameter, "_unsharded_param", None)
            for module, name in _slots_of(parameter):
                if gathered is not None and module._parameters.get(name) is gathered:
                    yield (id(module), name), parameter.sharded_param


def _gathered_by_fsdp1(module: nn.Module) -> Iterator[tuple[Slot, Tensor]]:
    """Yield what `FullyShardedDataParallel(use_orig_params=True)` keeps for gathered views."""
    flat = _flat_parameter_of(module)
    parameters = getattr(flat, "_params", None) or ()
    infos = getattr(flat, "_param_infos", None) or ()
    for parameter, (name, owner, _) in zip(parameters, infos, strict=False):
        now = owner._parameters.get(name)
        if now is not None and not isinstance(now, nn.Parameter):
            yield (id(owner), name), parameter


def flat_parameters(modules: Iterable[nn.Module]) -> Iterator[tuple[Tensor, set[int]]]:
    """Yield the flat parameters of FullyShardedDataParallel that hide those of other modules.

    Args:
        modules: the modules of a model.

    Yields:
        A flat parameter, and the ids of the modules whose parameters are in it.
    """
    for module in _fsdp1_modules(modules):
        flat = _flat_parameter_of(module)
        if flat is not None and getattr(flat, "_params", None) is None:
            infos = getattr(flat, "_param_infos", ())
            yield flat, {id(owner) for name, owner, _ in infos if name not in owner._parameters}


def shards_by_id(modules: Iterable[nn.Module]) -> dict[int, Shard]:
    """Return which shard of a FullyShardedDataParallel's parameter each of these tensors is.

    Args:
        modules: the modules of a model.
    """
    shards: dict[int, Shard] = {}
    for module in _fsdp1_modules(modules):
        handle, flat = vars(module).get("_handle"), _flat_parameter_of(module)
        if flat is None or not getattr(handle, "uses_sharded_strategy", True):
            continue
        shard = (("flat", getattr(handle, "rank", None)),)
        shards.update({id(each): shard for each in (flat, *(getattr(flat, "_params", None) or ()))})
    return shards


def is_shard(tensor: Tensor) -> bool:
    """Tell whether a tensor is what one rank holds of a larger one."""
    return bool(getattr(tensor, "_fsdp_flattened", False)) or any(
        coordinate is not None for _, coordinate in shard_of(tensor)
    )


def shard_of(tensor: Tensor) -> Shard:
    """Return which shard of a DTensor a rank holds: two ranks with the same one hold the same.

    Returns:
        How it is placed along each dimension of the mesh and, unless it is replicated there, the
        rank's coordinate; empty if it is no DTensor.
    """
    placements = getattr(tensor, "placements", None)
    mesh = getattr(tensor, "device_mesh", None)
    if placements is None or mesh is None:
        return ()
    coordinates = mesh.get_coordinate()
    if coordinates is None:
        return (("outside the mesh", None),)
    return tuple(
        (f"{dimension} {placement}", None if placement.is_replicate() else coordinate)
        for dimension, (placement, coordinate) in enumerate(
            zip(placements, coordinates, strict=True)
        )
    )


def awaits_root(module: nn.Module) -> bool:
    """Tell whether `fully_shard` would take a module for the root of a model, should it run now.

    It takes the first that runs, and refuses to run a parent of it afterwards.
    """
    states = [_state_of(each) for each in module.modules()] if _module_states else []
    return any(each is not None and getattr(each, "_is_root", 0) is None for each in states)


def local_tensor(tensor: Any) -> Tensor:
    """Return what this rank holds of a DTensor; any other tensor as it is."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "device_mesh") else tensor
    return local


def whole_tensor(tensor: Any) -> Tensor:
    """Return a tensor, or what all ranks hold of a DTensor together: then a collective runs."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole
