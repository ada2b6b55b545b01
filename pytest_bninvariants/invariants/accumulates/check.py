"""The invariant `accumulates`: gradients of micro-batches add up to those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from pytest_bninvariants.checks import is_int
from pytest_bninvariants.diagnosis.wording import keep_in_eval, name_list, one_or_many
from pytest_bninvariants.errors import GateError, InvariantBroken, shown
from pytest_bninvariants.evaluation.batches import samples_in
from pytest_bninvariants.invariants.accumulates.gradient_comparison import Comparison, compare
from pytest_bninvariants.invariants.accumulates.gradients import Gradients
from pytest_bninvariants.invariants.signature import refuse_wrong_calls
from pytest_bninvariants.reporting.verdict_text import render
from pytest_bninvariants.verdict import Cause, Change, Verdict


@refuse_wrong_calls()
def accumulates(
    model: nn.Module,
    batch: Any,
    k: int,
    *,
    loss: Callable[[nn.Module, Any], Tensor],
    weight: Callable[[Any], float] = samples_in,
) -> Verdict:
    """Hold that the gradients of k micro-batches add up to those of the whole batch.

    Copies of the model run, in the modes that it is in; the model, its gradients, and the random
    generators stay as they are. docs/invariants.md derives the bound.

    Args:
        model: the model, in the modes in which it trains.
        batch: a tensor, or a nest of tensors in tuples, lists and mappings, with samples in
            dimension 0; what is no tensor, or has no dimension, goes to each micro-batch whole.
        k: the number of micro-batches, from 2 to the number of samples; their sizes differ by 1 at
            most.
        loss: `loss(model, batch)`, the scalar whose gradients are compared; it must use the model
            that it is given.
        weight: what a micro-batch's loss counts, relative to the same of the whole batch. As it is,
            its number of samples, for a loss that is a mean over samples; `lambda batch: 1` is for
            a sum.

    Returns:
        The verdict, which holds.

    Raises:
        InvariantBroken: a gradient does not add up.
        GateError: it cannot be judged: an argument is wrong, nothing is trainable, the model draws
            random numbers, or it does not run in float64.
    """
    __tracebackhide__ = True
    _check(batch, k, loss=loss, weight=weight)
    verdict = _judge(model, k, samples_in(batch), compare(model, batch, k, loss, weight))
    if not verdict.holds:
        raise InvariantBroken(render([verdict]), (verdict,))
    return verdict


def _check(batch: object, k: object, **functions: object) -> None:
    samples = samples_in(batch)
    if samples < 2:
        raise GateError(f"accumulates: a batch of {samples} cannot be cut into micro-batches")
    if not is_int(k) or not 2 <= k <= samples:
        raise GateError(
            "accumulates(model, batch, k): the number of micro-batches is a whole number from 2 to "
            f"{samples}, the samples of the batch; got {shown(k)}"
        )
    for name, function in functions.items():
        if not callable(function):
            raise GateError(f"accumulates({name}=...) takes a function; got {shown(function)}")


def _judge(model: nn.Module, k: int, samples: int, compared: Comparison) -> Verdict:
    changes = tuple(_changes(compared))
    smallest, largest = samples // k, -(-samples // k)
    sizes = f"{smallest}" if smallest == largest else f"{smallest} or {largest}"
    return Verdict(
        guard=f"accumulates(k={k})",
        noun="gradient",
        broke="do not add up" if len(compared.bounds) > 1 else "does not add up",
        column="gradient",
        model=type(model).__name__,
        source="",
        layers=len(compared.bounds),
        tensors=None,
        changes=changes,
        causes=tuple(_causes(compared.parts)) if changes else (),
        notes=(
            f"one batch of {samples}, and {k} micro-batches of {sizes}, in float64 on copies of "
            f"the model: the loss is {compared.whole.loss:.6g} and {compared.parts.loss:.6g}",
            *_least(compared, changes),
        ),
    )


def _changes(compared: Comparison) -> Iterator[Change]:
    for name in compared.bounds:
        if compared.beyond(name) > 1:
            distance = compared.whole.distance(compared.parts, name)
            largest = float(compared.whole.sums[name].abs().max())
            share = f"{distance / largest:.2g} of its largest value" if largest else "from 0"
            text = f"max |d| {distance:.1e}, {share}"
            yield Change(name=name, layer=name, kind="gradient", text=text)


def _least(compared: Comparison, changes: tuple[Change, ...]) -> Iterator[str]:
    beyond = [compared.beyond(change.name) for change in changes]
    if beyond:
        yield f"each of these differences is {min(beyond):.0e} times what rounding can do, or more"


def _causes(parts: Gradients) -> Iterator[Cause]:
    training = tuple(name for name, mode in parts.normalised.items() if mode)
    others = tuple(name for name, mode in parts.normalised.items() if not mode)
    if training:
        names = list(training)
        yield Cause(
            name="training-mode",
            layers=training,
            why=f"{name_list(names)} normalised each micro-batch with {_its(names)} batch "
            "statistics, and not with those of the whole batch",
            fix=f"where frozen is meant, {keep_in_eval(names)}; else put a norm "
            "without batch statistics there, such as GroupNorm, or accept that k micro-batches are "
            "not one large batch (SyncBatchNorm joins processes, and not micro-batches)",
        )
    if others:
        names = list(others)
        yield Cause(
            name="no-stored-statistics",
            layers=others,
            why=f"{name_list(names)} {one_or_many(names, 'was', 'were')} in eval, and normalised "
            f"each micro-batch with {_its(names)} batch statistics",
            fix=f"have {name_list(names)} keep and use running statistics "
            "(track_running_stats=True), or put GroupNorm there",
        )
    if not parts.normalised:
        yield Cause(
            name="not-a-mean",
            layers=(),
            why="no BN layer was seen to use batch statistics: the loss is no mean over samples "
            "(but a sum, or a mean over tokens or over what is not ignored), or something else in "
            "the model mixes samples",
            fix="say what each micro-batch's loss counts, accumulates(..., weight=lambda batch: "
            "...), and let the training loop weigh it likewise",
        )


def _its(names: list[str]) -> str:
    return one_or_many(names, "its own", "their own")
