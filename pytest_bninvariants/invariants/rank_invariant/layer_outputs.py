"""Find the first layer whose output for a sample depends on which samples the rank has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bninvariants.evaluation.batches import samples_in
from pytest_bninvariants.evaluation.gradient_pass import (
    BatchPart,
    GradientPass,
    LossFunction,
    Wrapper,
)
from pytest_bninvariants.evaluation.one_process import copy_for_one_process
from pytest_bninvariants.evaluation.rng_state import preserved_rng
from pytest_bninvariants.invariants.rank_invariant.shard_pass import CALLER, ShardedBatch
from pytest_bninvariants.selection.walk import named_modules

_FAR = 2.0**-30
"""How far apart outputs are that differ, relative to their size: far above float64's rounding."""


def first_layer_that_differs(
    model: nn.Module, batch: ShardedBatch, loss: LossFunction
) -> str | None:
    """Return the first layer that gives other outputs for the shard alone than in the whole batch.

    Only layers without children count, and outputs that have the samples in dimension 0. No rank
    waits for another here.
    """
    single = copy_for_one_process(CALLER, model)
    whole, own = (
        _outputs(single, loss, part, rows)
        for part, rows in ((BatchPart(batch.whole), batch.rows), (batch.part, None))
    )
    for name, output in own.items():
        if name in whole and whole[name].shape == output.shape and _differ(whole[name], output):
            return name
    return None


def _outputs(
    model: nn.Module, loss: LossFunction, part: BatchPart, rows: slice | None
) -> dict[str, Tensor]:
    """Return the first output of each layer, in the order in which the layers run."""
    outputs: dict[str, Tensor] = {}
    samples = samples_in(part.batch)
    wrap = _recording(lambda name, output: outputs.setdefault(name, output), rows, samples)
    with preserved_rng(model):
        GradientPass(caller=CALLER, model=model, loss=loss, wrap=wrap).run([part], torch.float64)
    return outputs


def _recording(record: Callable[[str, Tensor], Any], rows: slice | None, samples: int) -> Wrapper:
    """Return a function that gives the layers of a copy hooks, which record outputs.

    Args:
        record: takes a layer's name and its output.
        rows: which samples to keep; None: all.
        samples: how many samples the model gets.
    """

    def hook(name: str) -> Callable[..., None]:
        def see(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() and len(output) == samples:
                kept = output if rows is None else output[rows]
                record(name, kept.detach().clone())

        return see

    def wrap(model: nn.Module) -> nn.Module:
        for name, module in named_modules(model):
            if not any(True for _ in module.children()):
                module.register_forward_hook(hook(name))
        return model

    return wrap


def _differ(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return not torch.equal(one, other)
    return bool((one - other).abs().max() > _FAR * one.abs().max()) if one.numel() else False
