"""What happened to one parameter during a step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf, isnan

from torch import Tensor

from pytest_bninvariants.instrumentation.optimizers import Gradient
from pytest_bninvariants.invariants.trains.value_sample import HandStep, is_unlike, same_sample
from pytest_bninvariants.verdict import Place

_MOST_STATES = 256


@dataclass(slots=True)
class ParameterRecord:
    """What optimizers and loads did with one parameter.

    Args:
        optimizer: class name of an optimizer that holds it and stepped; empty if there is none.
        group: the number of the parameter group that holds it.
        rate: the largest learning rate that it stepped with.
        gradient: its gradient at a step, of several steps the most that there was.
        size: the largest magnitude in its gradients; infinite if one was NaN.
        saw_backward: whether a backward pass ended before the first step of an optimizer.
        cleared: whether a step found none, or zeros, where backward had left a gradient.
        start: a sample of its values at the start.
        began_lazy: whether it had no values at the start.
        after: a sample of its values after the latest step.
        moved: whether a step was seen to move it.
        may_have_moved: whether a step with a gradient may have moved it by values outside a sample.
        by_hand: whether it moved along its gradient outside of any optimizer's step.
        loaded: whether its values came from a load, and no step has moved it since.
        loaded_at: where that load was, if it was seen.
        checkpointed: whether its module ran in a reentrant checkpoint that keeps no graph.
        stale: whether it moved while autocast kept a cast of its old values, and was used again.
        states: a hash of some of its values, for the latest states that steps led to.
    """

    optimizer: str = ""
    group: int = 0
    rate: float = 0.0
    gradient: Gradient = "none"
    size: float = 0.0
    saw_backward: bool = False
    cleared: bool = False
    start: Tensor | None = None
    began_lazy: bool = False
    after: Tensor | None = None
    moved: bool = False
    may_have_moved: bool = False
    by_hand: HandStep = field(default_factory=HandStep)
    loaded: bool = False
    loaded_at: Place | None = None
    checkpointed: bool = False
    stale: bool = False
    states: deque[int] = field(default_factory=lambda: deque(maxlen=_MOST_STATES))

    def note_state(self, values: Tensor | None) -> None:
        """Note a sample of a state that steps led to, if any has moved the parameter."""
        if self.moved and not self.loaded:
            self.states.append(_hash(values))

    def knows_state(self, values: Tensor | None) -> bool:
        """Tell whether a sample is of values to which steps have led."""
        return _hash(values) in self.states

    def was_overwritten(self, values: Tensor | None) -> bool:
        """Tell whether a sample of the present values has nothing of what the steps led to."""
        before = self.after
        if not self.moved or self.loaded or values is None or before is None:
            return False
        same = same_sample(values, before) or self.knows_state(values)
        return not same and is_unlike(values, before)

    def note_size(self, size: float) -> None:
        """Note a magnitude in its gradient."""
        self.size = inf if isnan(size) else max(self.size, size)

    def note_move(self) -> None:
        """Note that a step has moved it."""
        self.moved, self.loaded, self.loaded_at = True, False, None

    def note_load(self, values: Tensor | None, place: Place | None) -> None:
        """Note that a load has set other values; those that training led to earlier are no news."""
        self.loaded = not self.knows_state(values)
        self.loaded_at = place if self.loaded else None


def _hash(values: Tensor | None) -> int:
    return hash(None if values is None else tuple(values.tolist()))
