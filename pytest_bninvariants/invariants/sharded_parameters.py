"""Refuse what no guard can watch of sharded parameters, and say what to do."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pytest_bninvariants.diagnosis.wording import name_list, quoted_list
from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.selection_plan import Selection
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.torch_internals.sharding import flat_parameters, is_shard


def refuse_parts_of_flat_parameters(selection: Selection, scope: Scope) -> None:
    """Refuse modules whose parameters are in a flat parameter that is not watched as a whole.

    Args:
        selection: what is watched.
        scope: what was asked for.

    Raises:
        Refusal: if there are any.
    """
    watched = set(map(id, selection.tensors.tensors))
    for flat, owners in flat_parameters(selection.names.modules.values()):
        if not scope.parameters or id(flat) in watched:
            continue
        hidden = [key for key, module in selection.modules.items() if id(module) in owners]
        if hidden:
            raise Refusal(
                f"the parameters of {quoted_list(hidden)} are in a flat parameter of "
                "FullyShardedDataParallel, which can only be watched as a whole: wrap the model "
                "with use_orig_params=True or fully_shard, or pass parameters=False to watch the "
                "buffers alone"
            )


def refuse_sharded_since(before: Mapping[str, WatchedTensor], model: nn.Module) -> None:
    """Refuse tensors that were whole when a step began, and are shards now.

    Args:
        before: what was watched, by key.
        model: the model, now.

    Raises:
        Refusal: if there are any.
    """
    now = ModelNames.from_model(model).tensors
    sharded = [
        key
        for key, each in before.items()
        if key in now and is_shard(now[key].tensor) and not is_shard(each.tensor)
    ]
    if sharded:
        raise Refusal(
            f"{name_list(sharded)} became shards inside the guard, so this rank no longer holds "
            "what it would compare: shard the model before the guard"
        )
