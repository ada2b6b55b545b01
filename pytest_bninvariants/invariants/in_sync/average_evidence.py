"""Gather what a step tells about an average that is not what its decay says."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor
from pytest_bninvariants.invariants.in_sync.decay_estimate import estimate_decay
from pytest_bninvariants.invariants.in_sync.early_update import EarlyUpdate, find_early_update
from pytest_bninvariants.invariants.in_sync.pair import ModelPair, Tensors
from pytest_bninvariants.invariants.in_sync.step_log import StepLog
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.verdict import Place

_UPDATES = range(2, 11)
"""The numbers of updates in one step that a decay is compared with."""
_DIGITS = 6
"""With so many digits a decay fits no few values by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeAverage:
    """What a step tells about an average as a whole.

    Args:
        model: the name of the model.
        average: the name of the average.
        decay: the decay that the user expects.
        used: the decay that the update used, if known; else the expected one.
        early: the updates, if one came before the optimizer's step.
        swapped: whether the model is the average of what was passed as its average.
        nothing_updated: whether nothing in the average was updated.
        written: whether it was seen to be written to.
        ran_first: whether an update ran before the optimizer's step; None if no step was seen.
        steps: how many steps optimizers made that hold the model.
        any_right: whether any averaged tensor is what the expected decay gives.
    """

    model: str
    average: str
    decay: float
    used: float
    early: EarlyUpdate | None
    swapped: bool
    nothing_updated: bool
    written: bool
    ran_first: bool | None
    steps: int
    any_right: bool

    @property
    def has_plain_decay(self) -> bool:
        """Tell whether the decay that was used follows from the expected one, or makes a copy."""
        return self.used == 0 or self.is_reversed or self.updates is not None

    @property
    def updates(self) -> int | None:
        """Return how many updates with the expected decay give the decay that was used."""
        powers = (n for n in _UPDATES if math.isclose(self.used, self.decay**n, rel_tol=1e-6))
        return next(powers, None)

    @property
    def is_reversed(self) -> bool:
        """Tell whether the decay that was used is the weight of the new value."""
        return math.isclose(self.used, 1 - self.decay, rel_tol=1e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongAverage:
    """A tensor that is not what the decay says, and how the average was updated.

    Args:
        whole: what is known about the whole average.
        tensor: the tensor.
        is_shared: whether the step made both models hold it.
        is_early: whether it has values that an update before the optimizer's step gives it.
        layer_is_behind: whether no parameter of its layer moved that should have, or of any layer
            if its own has no parameters.
        wrapper: the part of its name that one of the two models has and the other has not.
        loaded_itself_at: where it was loaded from itself.
        in_training: whether its layer in the average is in training mode.
    """

    whole: WholeAverage
    tensor: AverageTensor
    is_shared: bool
    is_early: bool
    layer_is_behind: bool
    wrapper: str
    loaded_itself_at: Place | None
    in_training: bool

    @property
    def fits_decay_used(self) -> bool:
        """Tell whether it was averaged with the decay that was used."""
        return self.tensor.with_decay(self.whole.used).holds


def gather_wrong_averages(
    averages: Mapping[str, AverageTensor],
    reverse: Iterable[AverageTensor],
    pair: ModelPair,
    tensors: tuple[Tensors, Tensors],
    shared: Collection[str],
    decay: float,
    log: StepLog,
) -> Iterator[WrongAverage]:
    """Yield the tensors of an average that are wrong, with what the step tells about them.

    Args:
        averages: all its tensors, by key.
        reverse: the model's tensors, as if the model were the average.
        pair: the model and its average.
        tensors: the tensors of each.
        shared: keys of the tensors that the step made both of them hold.
        decay: the weight of the old value.
        log: what happened during the step.
    """
    whole = _whole_average(averages, [*reverse], pair, decay, log)
    modules = ModelNames.from_model(pair.other).modules
    layers = _LayersBehind.of(averages.values())
    first, second = tensors
    for key, tensor in averages.items():
        if tensor.holds and key not in shared:
            continue
        yield WrongAverage(
            whole=whole,
            tensor=tensor,
            is_shared=key in shared,
            is_early=_is_early(key, tensor, whole, log),
            layer_is_behind=layers.include(tensor.watched.layer),
            wrapper=_wrapper(key, first[key].name, second[key].name),
            loaded_itself_at=log.loaded_itself_at(tensor.watched.tensor),
            in_training=modules[tensor.watched.layer].training,
        )


class _LayersBehind(NamedTuple):
    """The layers of an average with parameters, and those of them in which none moved."""

    with_parameters: set[str]
    behind: set[str]

    @classmethod
    def of(cls, averages: Collection[AverageTensor]) -> _LayersBehind:
        parameters = [each for each in averages if not each.is_buffer]
        moved = {each.watched.layer for each in averages if each.has_moved}
        behind = {each.watched.layer for each in parameters if each.is_left_behind}
        return cls({each.watched.layer for each in parameters}, behind - moved)

    def include(self, layer: str) -> bool:
        return layer in self.behind if layer in self.with_parameters else bool(self.behind)


def _saw_writes(averages: Mapping[str, AverageTensor], log: StepLog) -> bool:
    """Tell whether any write to the parameters was seen, or to buffers if there are no others."""
    parameters = [key for key, each in averages.items() if not each.is_buffer]
    return any(map(log.was_written, parameters or averages))


def _whole_average(
    by_key: Mapping[str, AverageTensor],
    reverse: list[AverageTensor],
    pair: ModelPair,
    decay: float,
    log: StepLog,
) -> WholeAverage:
    averages = [*by_key.values()]
    behind = [each for each in averages if each.is_left_behind]
    nothing_updated = len(behind) == sum(each.shows_update for each in averages) > 0
    used = None if nothing_updated else estimate_decay(averages)
    swapped = not nothing_updated and used is None and _is_average(reverse, decay)
    model, average = pair.names
    whole = WholeAverage(
        model=model,
        average=average,
        decay=decay,
        used=decay if used is None else used,
        early=None,
        swapped=swapped,
        nothing_updated=nothing_updated,
        written=_saw_writes(by_key, log),
        ran_first=log.average_ran_first,
        steps=log.steps,
        any_right=any(each.holds and each.has_moved and each.decay for each in averages),
    )
    if swapped or nothing_updated or (used is not None and whole.has_plain_decay):
        return whole
    early = find_early_update(averages, decay)
    is_likelier = early is not None and (used is None or early.decay == decay)
    return replace(whole, early=early) if is_likelier else whole


def _is_average(tensors: list[AverageTensor], decay: float) -> bool:
    """Tell whether tensors are averaged with a decay that a person would write."""
    used = estimate_decay(tensors)
    if used is None:
        return find_early_update(tensors, decay) is not None
    return used < 1 and round(used, _DIGITS) == used


def _is_early(key: str, tensor: AverageTensor, whole: WholeAverage, log: StepLog) -> bool:
    """Tell whether a wrong tensor has values that an update before the step gives it."""
    if not tensor.has_moved:  # an early update of what equals the model moves nothing
        unseen = whole.early is not None and not whole.written
        return tensor.was_copy and (log.was_written_first(key) or unseen)
    if tensor.decay is None:
        return tensor.is_early_copy
    return whole.early is not None and (tensor.is_buffer or whole.early.explains(tensor))


def _wrapper(key: str, *names: str) -> str:
    """Return the part of a name that only one of two models has, because of a wrapper."""
    bare = key.split(".")
    extra = [part for name in names for part in name.split(".") if part not in bare]
    return extra[0] if len(set(names)) > 1 and extra else ""
