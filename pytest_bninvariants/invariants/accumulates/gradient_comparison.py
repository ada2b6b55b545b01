"""Compare the gradients of a whole batch with those of its micro-batches, added up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.evaluation.batches import cut
from pytest_bninvariants.evaluation.rng_state import kept
from pytest_bninvariants.invariants.accumulates.gradients import Gradients, Loss, Pass

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
FINER = UNIT[torch.float64] / UNIT[torch.float32]
LUCK = 2.0**8
"""How much less than a typical one the rounding error may be that was met in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two ways to the same gradients.

    Args:
        whole: those of the whole batch.
        parts: those of its micro-batches, added up.
        bounds: how far apart rounding may put them, by the parameter's name.
    """

    whole: Gradients
    parts: Gradients
    bounds: dict[str, float]

    def beyond(self, name: str) -> float:
        """Return how many bounds apart the gradients of a parameter are."""
        return self.whole.distance(self.parts, name) / self.bounds[name]


def compare(
    model: nn.Module, batch: Any, k: int, loss: Loss, weight: Callable[[Any], float]
) -> Comparison:
    """Run copies of a model on a batch, and on its k micro-batches; arguments as `accumulates`.

    Raises:
        GateError: it does not run, or twice the same batch has not twice the same gradients.
    """
    passes = Pass(model, loss, weight, batch)
    with kept(model) as generators:
        whole = passes.run([batch], torch.float64)
        if generators.moved():
            raise GateError(_drawn(model))
        rough = passes.run([batch], torch.float32)
        parts = passes.run(cut(batch, k), torch.float64)
        again = passes.run([batch], torch.float64)
    bounds = _bounds(whole, rough, parts)
    if any(whole.distance(again, name) > bound for name, bound in bounds.items()):
        raise GateError(
            "accumulates cannot judge: two passes over the same batch have different gradients"
        )
    return Comparison(whole=whole, parts=parts, bounds=bounds)


def _drawn(model: nn.Module) -> str:
    random = [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and "Drop" in type(module).__name__
    ]
    said = f"; in training mode is {', '.join(random[:3])}" if random else ""
    return (
        "accumulates cannot judge a pass that draws random numbers, which micro-batches would draw "
        f"anew{said}: put what is random in eval"
    )


def _bounds(whole: Gradients, rough: Gradients, parts: Gradients) -> dict[str, float]:
    """Return how far apart two ways to compute a gradient in float64 may be, by name.

    To first order a rounding error is the unit roundoff times a number that depends on what is
    computed, and not on the precision (Higham, "Accuracy and Stability of Numerical Algorithms",
    chapter 1). float32 shows that number: what its pass is off by on this gradient or, relative to
    its size, on any of which it got a digit right. A gradient that is 0, as a bias's before a BN
    layer that uses batch statistics, is a sum of terms that cancel: for these the largest gradient
    stands in.
    """
    sizes = {name: max(whole.sizes[name], parts.sizes[name]) for name in whole.sums}
    off = {name: whole.distance(rough, name) for name in sizes}
    sound = {name: size for name, size in sizes.items() if 10 * off[name] < size}
    worst = max((off[name] / size for name, size in sound.items()), default=0.0)
    least = UNIT[torch.float32] * max(sizes.values())
    return {name: LUCK * FINER * max(off[name], worst * sizes[name], least) for name in sizes}
