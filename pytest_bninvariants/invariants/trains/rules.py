"""Why a parameter did not train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import name_list, one_or_many
from pytest_bninvariants.instrumentation.optimizers import Gradient
from pytest_bninvariants.invariants.trains.parameter_log import Trainee
from pytest_bninvariants.verdict import Cause

_GRADIENTS: dict[Gradient, str] = {
    "none": "no gradient",
    "zero": "a gradient of zeros",
    "nonzero": "a gradient of up to {size:.1e}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter that is to train, at the end of a step.

    Args:
        name: its qualified name.
        seen: what was seen of it.
        moved: whether its bytes changed.
        asks: whether it asks for a gradient.
        twins: its other names, of which nobody asked that they train.
        shrank: whether it moved by one factor in a step without a gradient, as decay moves it.
        dtype: its dtype.
        stepped: class names of the optimizers that stepped.
    """

    name: str
    seen: Trainee
    moved: bool
    asks: bool
    twins: list[str]
    shrank: bool
    dtype: torch.dtype
    stepped: list[str]

    @property
    def trained(self) -> bool:
        """Tell whether it moved, by more than what an optimizer does without a gradient."""
        decayed = self.shrank or (self.seen.held_by and self.seen.gradient == "zero")
        return self.moved and not decayed

    @property
    def group(self) -> tuple[str, int]:
        """Return what stepped for it."""
        return self.seen.held_by, self.seen.group

    @property
    def is_negligible(self) -> bool:
        """Tell whether its step was next to nothing, as that of a bias before a BatchNorm.

        In half precision it may be a healthy one that is rounded away.
        """
        wide = self.dtype in (torch.float32, torch.float64)
        stood = not (self.moved or self.seen.moved)
        return (
            wide and stood and self.asks and self.seen.gradient == "nonzero" and self.seen.rate > 0
        )

    @property
    def text(self) -> str:
        """Say what it did not do."""
        seen = self.seen
        if not self.asks:
            return "did not move; requires_grad is False"
        if not seen.held_by:
            return "did not move; no optimizer that holds it stepped"
        did = "moved by decay or moments alone" if self.moved else "did not move"
        stepped = f"{seen.held_by} (group {seen.group}) stepped with lr {seen.rate:g}"
        return f"{did}; {stepped} and {_GRADIENTS[seen.gradient].format(size=seen.size)}"

    @property
    def told_as_hazard(self) -> str:
        """Say that it stood still while others of its group moved."""
        return (
            f"did not move: a gradient of up to {self.seen.size:.1e} was rounded away, as that of "
            "a bias before a BatchNorm, which has no effect"
        )


def diagnose(still: list[Parameter]) -> tuple[Cause, ...]:
    """Explain each parameter by the first rule that applies."""
    return explain(RULES, still, layers=_names, tensors=_names)


def _names(still: list[Parameter]) -> list[str]:
    return [each.name for each in still]


def _rule(
    cause: str,
    applies: Callable[[Parameter], bool],
    why: Callable[[list[Parameter]], str],
    fix: str,
) -> Rule[Parameter]:
    """Make a rule whose explanation begins with the names, and whose fix has them in it."""

    def explained(found: list[Parameter]) -> tuple[str, str]:
        names = name_list(_names(found))
        return f"{names} {why(found)}", fix.format(names=names)

    return Rule(cause=cause, applies=applies, explain=explained)


def _of(found: list[Parameter], one: str, many: str) -> str:
    return one_or_many(_names(found), one, many)


def _why_tied(found: list[Parameter]) -> str:
    twins = list(dict.fromkeys(twin for each in found for twin in each.twins))
    return (
        f"{_of(found, 'is the tensor of', 'are the tensors of')} {name_list(twins)}, too, "
        "which requires_grad=False has frozen under both names"
    )


def _why_unheld(found: list[Parameter]) -> str:
    stepped = found[0].stepped
    if not stepped:
        return f"{_of(found, 'was', 'were')} not stepped for: no optimizer stepped at all"
    return f"{_of(found, 'is', 'are')} in no optimizer that stepped ({', '.join(stepped)} did)"


def _why_no_gradient(found: list[Parameter]) -> str:
    return (
        f"had no gradient when {found[0].seen.held_by} stepped: no loss depended on "
        f"{_of(found, 'it', 'them')}, by way of what autograd records"
    )


def _why_rounded_away(found: list[Parameter]) -> str:
    first = found[0]
    return (
        f"had a gradient of up to {max(each.seen.size for each in found):.1e} and a learning rate "
        f"of {first.seen.rate:g}, which the digits of {str(first.dtype).removeprefix('torch.')} do "
        f"not hold next to {_of(found, 'its', 'their')} values"
    )


RULES: tuple[Rule[Parameter], ...] = (
    _rule(
        "tied",
        lambda each: not each.asks and bool(each.twins),
        _why_tied,
        "untie {names} (a Parameter of its own, with a copy of the values), or do not freeze it",
    ),
    _rule(
        "requires-grad-off",
        lambda each: not each.asks,
        lambda found: f"{_of(found, 'has', 'have')} requires_grad=False",
        "call requires_grad_(True) on {names}, or leave out of what trains what is to be frozen",
    ),
    _rule(
        "not-in-optimizer",
        lambda each: not each.seen.held_by,
        _why_unheld,
        "build the optimizer of {names}, after the last conversion or copy of the model; under "
        "GradScaler look whether the step was skipped",
    ),
    _rule(
        "undone",
        lambda each: each.seen.moved and not each.moved,
        lambda found: (
            f"moved in a step of {found[0].seen.held_by}, and "
            f"{_of(found, 'has its', 'have their')} old values again"
        ),
        "look for what copies or loads the old values back after the step",
    ),
    _rule(
        "no-gradient",
        lambda each: each.seen.gradient == "none",
        _why_no_gradient,
        "look for detach(), no_grad() or .data between {names} and the loss, or a branch that "
        "this step does not run",
    ),
    _rule(
        "zero-gradient",
        lambda each: each.seen.gradient == "zero",
        lambda found: f"had a gradient of zeros when {found[0].seen.held_by} stepped",
        "look for what multiplies by zero or saturates between {names} and the loss, or for "
        "zero_grad() between backward() and step()",
    ),
    _rule(
        "learning-rate-0",
        lambda each: each.seen.rate == 0,
        lambda found: f"had a gradient, and a learning rate of 0 in {found[0].seen.held_by}",
        "give the group of {names} a learning rate, or look at its scheduler's warm-up",
    ),
    _rule(
        "rounded-away",
        lambda _: True,
        _why_rounded_away,
        "keep {names} in float32, or give the step a learning rate that reaches the last digit",
    ),
)
"""The first that applies explains a parameter."""
