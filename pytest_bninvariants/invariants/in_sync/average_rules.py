"""Why an average is not what its decay says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from pytest_bninvariants.batchnorm.arithmetic import UNIT
from pytest_bninvariants.diagnosis.wording import name_list, one_or_many
from pytest_bninvariants.invariants.in_sync.average_tensor import Average
from pytest_bninvariants.invariants.in_sync.pair import Pair, expression, left_behind
from pytest_bninvariants.selection.bn_layers import BN_STATE, STATISTICS
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.verdict import Cause

_DIGITS = range(1, 13)
_UPDATES = range(2, 11)


def causes_of(averages: list[Average], pair: Pair, decay: float) -> tuple[Cause, ...]:
    """Return the causes, as far as they can be seen.

    Args:
        averages: all tensors, at least one of which does not hold.
        pair: the model and its average.
        decay: the weight of the old value.
    """
    behind = [each for each in averages if each.is_left_behind]
    if behind and len(behind) == sum(each.tells for each in averages):
        average = pair.names[1]
        why = f"nothing in {average} was updated: no update of it ran in the step"
        fix = f"update {average} after each step of the optimizer"
        return (Cause(name="left-behind", layers=_layers(behind), why=why, fix=fix),)
    wrong = [each for each in averages if not each.holds and not each.is_left_behind]
    used = decay_used(averages)
    weight = decay if used is None else used
    off = [each for each in wrong if each.decay is not None and each.under(weight).holds]
    buffers = [each for each in wrong if each not in off and each.watched.kind == "buffer"]
    averaged = [each for each in buffers if each.decay is None and each.under(weight).holds]
    copied = [each for each in buffers if each.decay is not None and each.is_copy]
    moved = [each for each in buffers if each not in averaged and each not in copied]
    return (
        *_left_behind(behind, pair),
        *_other_decay(off, pair.names[1], decay, weight),
        *_other_buffers(averaged, pair.names[1], "averaged", "copied"),
        *_other_buffers(copied, pair.names[1], "copied", "averaged"),
        *_own_forwards(moved, pair),
    )


def _layers(averages: Iterable[Average]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.watched.layer for each in averages))


def _left_behind(behind: list[Average], pair: Pair) -> Iterator[Cause]:
    model, average = pair.names
    of_bn = [each for each in behind if each.watched.name.endswith(STATISTICS)]
    if of_bn:
        yield left_behind(_layers(of_bn), average, model, "did not move")


def decay_used(averages: Iterable[Average]) -> float | None:
    """Return the decay that averages were updated with, in as few digits as fit; None: no one."""
    floats = [each for each in averages if each.dtype in UNIT and each.decay is not None]
    parameters = [each for each in floats if each.watched.kind == "parameter"]
    moved = [each for each in parameters or floats if not each.is_left_behind]
    size = sum(float((each.was - each.model).square().sum()) for each in moved)
    if not 0 < size < math.inf:
        return None
    kept = sum(float(((a.now - a.model) * (a.was - a.model)).sum()) for a in moved)
    rounded = (abs(round(kept / size, digits)) for digits in _DIGITS)
    fit = (each for each in rounded if each <= 1 and all(a.under(each).holds for a in moved))
    return next(fit, None)


def _other_decay(off: list[Average], average: str, decay: float, used: float) -> Iterator[Cause]:
    times = next((n for n in _UPDATES if math.isclose(used, decay**n, rel_tol=1e-6)), 0)
    how, also = "", ""
    fix = f"keep {decay:g} of the old value: mine.lerp_(theirs, 1 - {decay:g})"
    if times:
        how = f", as by {times} updates in one step"
        fix = f"update {average} once in a step, or have each update in a guard of its own"
    elif math.isclose(used, 1 - decay, rel_tol=1e-6):
        how = ": the weights are the wrong way round"
    elif used == 0:
        how = ": it is a copy of the model"
    else:
        also = f"; or say decay={used:g} where that is meant"
    if off:
        yield Cause(
            name="other-decay",
            layers=_layers(off),
            why=f"{average} was averaged with decay {used:g}{how}",
            fix=f"{fix}{also}",
        )


def _other_buffers(found: list[Average], average: str, what: str, meant: str) -> Iterator[Cause]:
    if found:
        yield Cause(
            name="other-buffers",
            layers=_layers(found),
            why=f"the buffers of {name_list([*_layers(found)])} in {average} are {what}, and not "
            f"{meant}",
            fix=f'say buffers="{what}" where that is meant, or have the update of {average} leave '
            f"them {meant}",
        )


def _own_forwards(moved: list[Average], pair: Pair) -> Iterator[Cause]:
    """Yield that layers in training mode moved their statistics themselves."""
    average, modules = pair.names[1], ModelNames.from_model(pair.other).modules
    layers = _layers(
        each
        for each in moved
        if each.watched.name.rpartition(".")[2] in BN_STATE and modules[each.watched.layer].training
    )
    if layers:
        names = [*layers]
        yield Cause(
            name="training-mode",
            layers=layers,
            why=f"{name_list(names)} in {average} {one_or_many(names, 'is', 'are')} in training "
            "mode, where each forward of its own moves running statistics, besides the update",
            fix=f"put the average in eval: {expression(average, 'average')}.eval()",
        )
