"""The invariant `accumulates`: gradients of micro-batches add up to those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from pytest_bninvariants.checks import is_int
from pytest_bninvariants.errors import GateError, InvariantBroken, describe
from pytest_bninvariants.evaluation.batches import samples_in
from pytest_bninvariants.evaluation.precision import require_float64
from pytest_bninvariants.guard_registry import add_verdict
from pytest_bninvariants.invariants.accumulates.gradient_comparison import (
    GradientComparison,
    compare_gradients,
)
from pytest_bninvariants.invariants.accumulates.rules import causes_of
from pytest_bninvariants.invariants.signature import refuse_wrong_calls
from pytest_bninvariants.selection.walk import all_tensors
from pytest_bninvariants.snapshot.reads.capture import refuse_during_capture
from pytest_bninvariants.verdict import Change, Verdict


@refuse_wrong_calls()
def accumulates(
    model: nn.Module,
    batch: Any,
    k: int,
    *,
    loss: Callable[[nn.Module, Any], Tensor],
    weight: Callable[[Any], float] = samples_in,
) -> Verdict:
    """Check that the gradients of k micro-batches add up to those of the whole batch.

    Only copies of the model run, in the modes that it is in; the model, its gradients and the
    random generators stay as they are. docs/invariants/accumulates.md derives the bound.

    Args:
        model: the model, in the modes in which it trains.
        batch: a tensor, or a nest of tensors in tuples, lists and mappings, with samples in
            dimension 0; numbers, strings and tensors without a dimension go to each micro-batch.
        k: the number of micro-batches, from 2 to the number of samples; their sizes differ by at
            most 1.
        loss: `loss(model, batch)`, the scalar whose gradients are compared; it must call the model
            that it is given, not another reference to it.
        weight: `weight(batch)`, how much a micro-batch's loss counts; it is divided by the weight
            of the whole batch. The default, the number of samples, fits a loss that is a mean over
            samples; `lambda batch: 1` fits a sum.

    Returns:
        The verdict, which holds.

    Raises:
        InvariantBroken: if a gradient does not add up.
        GateError: if an argument is wrong, nothing is trainable, or the model draws random numbers
            or does not run in float64.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import InvariantBroken, accumulates
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        >>> batch = torch.randn(8, 3)
        >>> def loss(model, batch):
        ...     return model(batch).square().mean()
        >>> accumulates(net.eval(), batch, 4, loss=loss).holds
        True
        >>> try:
        ...     accumulates(net.train(), batch, 4, loss=loss)
        ... except InvariantBroken as failure:
        ...     print(str(failure).splitlines()[0])
        2 of 4 gradients do not add up: 0.weight, 1.weight (training-mode)
    """
    _check_arguments(batch, k, loss=loss, weight=weight)
    refuse_during_capture([model], "called")
    require_float64(all_tensors(model), "tell rounding from a real difference")
    comparison = compare_gradients(model, batch, k, loss, weight)
    verdict = _judge(model, k, samples_in(batch), comparison)
    add_verdict(verdict)
    if not verdict.holds:
        raise InvariantBroken(verdict)
    return verdict


def _check_arguments(batch: object, k: object, **functions: object) -> None:
    samples = samples_in(batch)
    if samples < 2:
        raise GateError(f"accumulates: a batch of {samples} cannot be cut into micro-batches")
    if not is_int(k) or not 2 <= k <= samples:
        raise GateError(
            "accumulates(model, batch, k): the number of micro-batches is a whole number from 2 to "
            f"{samples}, the samples of the batch; got {describe(k)}"
        )
    for name, function in functions.items():
        if not callable(function):
            raise GateError(f"accumulates({name}=...) takes a function; got {describe(function)}")


def _judge(model: nn.Module, k: int, samples: int, comparison: GradientComparison) -> Verdict:
    changes = tuple(_changes(comparison))
    smallest, largest = samples // k, -(-samples // k)
    sizes = f"{smallest}" if smallest == largest else f"{smallest} or {largest}"
    return Verdict(
        guard=f"accumulates(k={k})",
        noun="gradient",
        broke="do not add up" if len(comparison.bounds) > 1 else "does not add up",
        column="gradient",
        model=type(model).__name__,
        source="",
        layers=len(comparison.bounds),
        tensors=None,
        changes=changes,
        causes=causes_of(comparison.parts.normalised) if changes else (),
        notes=(
            f"one batch of {samples}, and {k} micro-batches of {sizes}, in float64 on copies of "
            f"the model: the loss is {comparison.whole.loss:.6g} and {comparison.parts.loss:.6g}",
            *_smallest_excess(comparison, changes),
        ),
    )


def _changes(comparison: GradientComparison) -> Iterator[Change]:
    for name in comparison.bounds:
        if comparison.excess(name) > 1:
            distance = comparison.whole.distance(comparison.parts, name)
            largest = float(comparison.whole.sums[name].abs().max())
            share = f"{distance / largest:.2g} of its largest value" if largest else "from 0"
            text = f"max |d| {distance:.1e}, {share}"
            yield Change(name=name, layer=name, kind="gradient", text=text)


def _smallest_excess(comparison: GradientComparison, changes: tuple[Change, ...]) -> Iterator[str]:
    excesses = [comparison.excess(change.name) for change in changes]
    if excesses:
        least = f"{min(excesses):.0e}"
        yield f"each of these differences is at least {least} times what rounding explains"
