"""Compare the gradients of a whole batch with those of its micro-batches, added up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pytest_bninvariants.batchnorm.arithmetic import UNIT
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.evaluation.batches import split_batch
from pytest_bninvariants.evaluation.rng_state import preserved_rng
from pytest_bninvariants.invariants.accumulates.gradient_pass import (
    GradientPass,
    LossFunction,
    PassGradients,
)

_FINER = UNIT[torch.float64] / UNIT[torch.float32]
_LUCK = 2.0**8
"""How much smaller than a typical rounding error the one in float32 may happen to be."""


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
    gradient_pass = GradientPass(model, loss, weight, batch)
    with preserved_rng(model) as generators:
        whole = gradient_pass.run([batch], torch.float64)
        if generators.moved():
            raise GateError(_random_draw_text(model))
        rough = gradient_pass.run([batch], torch.float32)
        parts = gradient_pass.run(split_batch(batch, k), torch.float64)
        again = gradient_pass.run([batch], torch.float64)
    bounds = _bounds(whole, rough, parts)
    if any(whole.distance(again, name) > bound for name, bound in bounds.items()):
        raise GateError("accumulates: two passes over the same batch have different gradients")
    return GradientComparison(whole=whole, parts=parts, bounds=bounds)


def _random_draw_text(model: nn.Module) -> str:
    random = [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and "Drop" in type(module).__name__
    ]
    where = f"; in training mode: {', '.join(random[:3])}" if random else ""
    return (
        "accumulates takes no pass that draws random numbers, because each micro-batch would "
        f"draw other ones: put random modules in eval{where}"
    )


def _bounds(whole: PassGradients, rough: PassGradients, parts: PassGradients) -> dict[str, float]:
    """Return how far apart two ways to compute a gradient in float64 may be, by name.

    To first order a rounding error is the unit roundoff times a number that depends on what is
    computed, and not on the precision (Higham, "Accuracy and Stability of Numerical Algorithms",
    chapter 1). The float32 pass shows that number: by its error in this gradient or, relative to
    the size, in any gradient of which it has a digit right. A gradient that is 0, as that of a bias
    before a BN layer that uses batch statistics, is a sum of terms that cancel: the largest
    gradient stands in for its size.
    """
    sizes = {name: max(whole.sizes[name], parts.sizes[name]) for name in whole.sums}
    errors = {name: whole.distance(rough, name) for name in sizes}
    has_a_digit = {name: size for name, size in sizes.items() if 10 * errors[name] < size}
    worst = max((errors[name] / size for name, size in has_a_digit.items()), default=0.0)
    least = UNIT[torch.float32] * max(sizes.values())
    return {name: _LUCK * _FINER * max(errors[name], worst * sizes[name], least) for name in sizes}
