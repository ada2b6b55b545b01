"""Compare the gradients of a whole batch with those of its micro-batches, added up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bninvariants.checks import is_real
from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.evaluation.batches import split_batch
from pytest_bninvariants.evaluation.gradient_pass import (
    BatchPart,
    GradientPass,
    LossFunction,
    PassGradients,
    errors_explained,
    random_draw_text,
)
from pytest_bninvariants.evaluation.rng_state import preserved_rng
from pytest_bninvariants.evaluation.rounding_bounds import rounding_bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientComparison:
    """The gradients of a batch, computed in two ways.

    Args:
        whole: the gradients of the whole batch.
        parts: the gradients of its micro-batches, added up.
        bounds: how far apart rounding may put them, by the parameter's name.
    """

    whole: PassGradients
    parts: PassGradients
    bounds: dict[str, float]

    def excess(self, name: str) -> float:
        """Return how far apart the gradients of a parameter are, in bounds; above 1 is too far."""
        return self.whole.distance(self.parts, name) / self.bounds[name]


def compare_gradients(
    model: nn.Module, batch: Any, k: int, loss: LossFunction, weight: Callable[[Any], float]
) -> GradientComparison:
    """Run copies of a model on a batch, and on its k micro-batches; arguments as in `accumulates`.

    Raises:
        GateError: if a pass does not run, draws random numbers, or is not repeatable.
    """
    gradient_pass = GradientPass(caller="accumulates", model=model, loss=loss)
    with preserved_rng(model) as generators:
        one = [BatchPart(batch)]
        several = _weighted_parts(batch, k, weight)
        whole = gradient_pass.run(one, torch.float64)
        if generators.moved():
            raise GateError(random_draw_text("accumulates", model, "micro-batch"))
        rough = gradient_pass.run(one, torch.float32)
        parts = gradient_pass.run(several, torch.float64)
        again = gradient_pass.run(one, torch.float64)
    sizes = {name: max(whole.sizes[name], parts.sizes[name]) for name in whole.sums}
    bounds = rounding_bounds({name: whole.distance(rough, name) for name in sizes}, sizes)
    if any(whole.distance(again, name) > bound for name, bound in bounds.items()):
        raise GateError("accumulates: two passes over the same batch have different gradients")
    return GradientComparison(whole=whole, parts=parts, bounds=bounds)


def _weighted_parts(batch: Any, k: int, weight: Callable[[Any], float]) -> list[BatchPart]:
    """Return the micro-batches, each with its share in the weight of the batch."""
    whole = _weight_of(batch, weight)
    if not whole > 0:
        raise GateError(
            "accumulates(weight=...): the weight of the batch must be above 0; got "
            f"{describe(whole)}"
        )
    return [
        BatchPart(part, _weight_of(part, weight) / whole, f"micro-batch {number} of {k}")
        for number, part in enumerate(split_batch(batch, k), 1)
    ]


def _weight_of(batch: Any, function: Callable[[Any], float]) -> float:
    """Return the weight of a batch."""
    with errors_explained("accumulates", "weight(batch)"):
        weight = function(batch)
    value = weight.item() if isinstance(weight, Tensor) and weight.numel() == 1 else weight
    if not is_real(value) or not math.isfinite(value):
        raise GateError(
            "accumulates(weight=...): the weight of a batch must be a number; got "
            f"{describe(weight)}"
        )
    return float(value)
