"""Why a parameter did not train."""

from __future__ import annotations

from collections.abc import Callable

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import name_list, one_or_many
from pytest_bninvariants.invariants.trains.parameter_result import ParameterResult
from pytest_bninvariants.verdict import Cause


def diagnose(still: list[ParameterResult]) -> tuple[Cause, ...]:
    """Explain each parameter by the first rule that applies."""
    return explain(RULES, still, layers=_names, tensors=_names)


def _names(still: list[ParameterResult]) -> list[str]:
    return [each.name for each in still]


def _rule(
    cause: str,
    applies: Callable[[ParameterResult], bool],
    why: Callable[[list[ParameterResult]], str],
    fix: str,
) -> Rule[ParameterResult]:
    """Return a rule whose explanation begins with the names, and whose fix contains them."""

    def explain_with_names(results: list[ParameterResult]) -> tuple[str, str]:
        names = name_list(_names(results))
        return f"{names} {why(results)}", fix.format(names=names)

    return Rule(cause=cause, applies=applies, explain=explain_with_names)


def _agree(results: list[ParameterResult], one: str, many: str) -> str:
    return one_or_many(_names(results), one, many)


def _optimizer(results: list[ParameterResult]) -> str:
    return results[0].record.optimizer


def _why_tied(results: list[ParameterResult]) -> str:
    twins = list(dict.fromkeys(twin for each in results for twin in each.twins))
    return (
        f"{_agree(results, 'is the same tensor as', 'are the same tensors as')} "
        f"{name_list(twins)}, so requires_grad=False froze both names"
    )


def _why_unheld(results: list[ParameterResult]) -> str:
    stepped = results[0].stepped
    if not stepped:
        return "got no step: no optimizer stepped inside the guard"
    return f"{_agree(results, 'is', 'are')} in no optimizer that stepped ({', '.join(stepped)} did)"


def _why_no_gradient(results: list[ParameterResult]) -> str:
    return (
        f"had no gradient when {_optimizer(results)} stepped: no loss depended on "
        f"{_agree(results, 'it', 'them')} through operations that autograd records"
    )


def _why_rounded_away(results: list[ParameterResult]) -> str:
    rate, dtype = results[0].record.rate, str(results[0].dtype).removeprefix("torch.")
    largest = max(each.record.size for each in results)
    return (
        f"had a gradient of up to {largest:.1e} and a learning rate of {rate:g}: in {dtype} such a "
        f"step is too small to change {_agree(results, 'its', 'their')} values"
    )


RULES: tuple[Rule[ParameterResult], ...] = (
    _rule(
        "tied",
        lambda each: not each.requires_grad and bool(each.twins),
        _why_tied,
        "untie {names} (register a new Parameter with a copy of the values), or do not freeze it",
    ),
    _rule(
        "requires-grad-off",
        lambda each: not each.requires_grad,
        lambda results: f"{_agree(results, 'has', 'have')} requires_grad=False",
        "call requires_grad_(True) on {names}, or exclude what is meant to be frozen",
    ),
    _rule(
        "not-in-optimizer",
        lambda each: not each.record.optimizer,
        _why_unheld,
        "create the optimizer after the last conversion or copy of the model, with {names} among "
        "its parameters; under GradScaler check whether the step was skipped",
    ),
    _rule(
        "undone",
        lambda each: each.record.moved and not each.moved,
        lambda results: (
            f"moved in a step of {_optimizer(results)}, and "
            f"{_agree(results, 'has its', 'have their')} old values again"
        ),
        "look for what copies or loads the old values back after the step",
    ),
    _rule(
        "no-gradient",
        lambda each: each.record.gradient == "none",
        _why_no_gradient,
        "look for detach(), no_grad() or .data between {names} and the loss, or a branch that "
        "this step does not run",
    ),
    _rule(
        "zero-gradient",
        lambda each: each.record.gradient == "zero",
        lambda results: f"had a gradient of zeros when {_optimizer(results)} stepped",
        "look for what multiplies by zero or saturates between {names} and the loss, or for "
        "zero_grad() between backward() and step()",
    ),
    _rule(
        "learning-rate-0",
        lambda each: each.record.rate == 0,
        lambda results: f"had a gradient, and a learning rate of 0 in {_optimizer(results)}",
        "give the group of {names} a learning rate, or look at its scheduler's warm-up",
    ),
    _rule(
        "rounded-away",
        lambda _: True,
        _why_rounded_away,
        "keep {names} in float32, or give the step a learning rate that reaches the last digit",
    ),
)
"""The first rule that applies explains a parameter."""
