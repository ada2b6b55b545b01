"""Why a parameter did not train."""

from __future__ import annotations

from collections.abc import Callable
from math import isinf
from typing import Any

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import clauses, name_list, one_or_many
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
    **place: Any,
) -> Rule[ParameterResult]:
    """Return a rule whose explanation begins with the names, and whose fix contains them."""

    def explain_with_names(results: list[ParameterResult]) -> tuple[str, str]:
        names = name_list(_names(results))
        return f"{names} {why(results)}", fix.format(names=names)

    return Rule(cause=cause, applies=applies, explain=explain_with_names, **place)


def _agree(results: list[ParameterResult], one: str, many: str) -> str:
    return one_or_many(_names(results), one, many)


def _optimizer(results: list[ParameterResult]) -> str:
    return results[0].record.optimizer


def _rate(results: list[ParameterResult]) -> str:
    rates = {each.record.rate for each in results}
    return f"{'up to ' if len(rates) > 1 else ''}{max(rates):g}"


def _why_tied(results: list[ParameterResult]) -> str:
    twins = list(dict.fromkeys(twin for each in results for twin in each.twins))
    return (
        f"{_agree(results, 'is the same tensor as', 'are the same tensors as')} "
        f"{name_list(twins)}, so requires_grad=False froze both names"
    )


def _why_loaded(results: list[ParameterResult]) -> str:
    return f"got {_agree(results, 'its', 'their')} values from a state_dict, and no step followed"


def _why_unheld(results: list[ParameterResult]) -> str:
    return (
        f"{_agree(results, 'is', 'are')} in no optimizer that stepped "
        f"({', '.join(results[0].stepped)} did)"
    )


def _why_replaced(results: list[ParameterResult]) -> str:
    others = _agree(results, "is another tensor", "are other tensors")
    return f"{others} than at the start of the block, and {_why_unheld(results)}"


def _why_in_place(results: list[ParameterResult]) -> str:
    return (
        "moved outside of any optimizer's step, and not along a gradient: an initialisation, noise "
        f"or a copy of other values wrote to {_agree(results, 'it', 'them')}"
    )


def _why_no_gradient(results: list[ParameterResult]) -> str:
    return (
        f"had no gradient when {_optimizer(results)} stepped: no loss depended on "
        f"{_agree(results, 'it', 'them')} through operations that autograd records"
    )


def _why_cleared(results: list[ParameterResult]) -> str:
    left = "zeros" if results[0].record.gradient == "zero" else "none"
    return (
        f"had a gradient after backward(), and {left} when {_optimizer(results)} stepped: "
        "zero_grad() ran in between, or something else that clears .grad"
    )


def _why_beside_zeros(results: list[ParameterResult]) -> str:
    zeros = results[0].zeros
    return (
        f"had a gradient of zeros when {_optimizer(results)} stepped; {name_list(zeros)} "
        f"{one_or_many(zeros, 'was', 'were')} all zeros until then, and what is multiplied by "
        "zeros has no gradient"
    )


def _why_rounded_away(results: list[ParameterResult]) -> str:
    dtypes = dict.fromkeys(str(each.dtype).removeprefix("torch.") for each in results)
    largest = max(each.record.size for each in results)
    return (
        f"had a gradient of up to {largest:.1e} and a learning rate of {_rate(results)}: in "
        f"{' and '.join(dtypes)} such a step is too small to change "
        f"{_agree(results, 'its', 'their')} values"
    )


def _is_unheld(result: ParameterResult) -> bool:
    return not result.record.optimizer and not (result.replaced and result.record.moved)


_CLEAR_ELSEWHERE = "call zero_grad() before backward() or after step(), and not in between"

RULES: tuple[Rule[ParameterResult], ...] = (
    _rule(
        "replaced",
        lambda each: bool(each.gone),
        lambda results: (
            f"{_agree(results, 'is no parameter', 'are no parameters')} of the model now: "
            f"{clauses(list(dict.fromkeys(each.gone for each in results)))}"
        ),
        "replace or convert modules before the guarded step, and build the optimizer after that; "
        "or leave {names} out with exclude=",
    ),
    _rule(
        "not-finite",
        lambda each: each.not_finite > 0,
        lambda results: f"became NaN or infinite, and {_agree(results, 'stays', 'stay')} so",
        "look for the first loss or gradient that is not finite "
        "(torch.autograd.set_detect_anomaly(True) names its operation), and for a learning rate "
        "that is too high",
    ),
    _rule(
        "not-finite",
        lambda each: isinf(each.record.size) and not each.moved,
        lambda _: "had a gradient that is not finite, and did not move: NaN stays NaN",
        "look for values that were NaN or infinite before the guarded step: of {names}, of other "
        "parameters and statistics, of the batch",
    ),
    _rule(
        "loaded",
        lambda each: each.record.loaded and each.moved,
        _why_loaded,
        "load checkpoints before the guarded step; a load after the optimizer's steps throws away "
        "what {names} learned",
        place=lambda each: each.record.loaded_at,
        did="loaded by",
    ),
    _rule(
        "in-place",
        lambda each: each.overwritten and each.moved,
        lambda results: (
            f"{_agree(results, 'has', 'have')} nothing of the values that {_optimizer(results)} "
            "led to: an initialisation or a copy wrote over them after its last step"
        ),
        "initialise, reset or copy {names} before the guarded step, not after it",
    ),
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
        "in-place",
        lambda each: each.is_unexplained,
        _why_in_place,
        "let an optimizer step with {names}: call optimizer.step() after backward(), and "
        "initialise before the guarded step; if you wrote the step yourself, leave .grad in "
        "place until it is done",
    ),
    _rule(
        "not-in-optimizer",
        lambda each: _is_unheld(each) and not each.stepped,
        lambda _: "got no step: no optimizer stepped inside the guard",
        "call optimizer.step() after backward(), inside the guard, with {names} among the "
        "optimizer's parameters; under GradScaler check whether the step was skipped",
    ),
    _rule(
        "not-in-optimizer",
        lambda each: _is_unheld(each) and each.replaced,
        _why_replaced,
        "create the optimizer after {names} got their place in the model, or give it the new ones "
        "with add_param_group()",
    ),
    _rule(
        "not-in-optimizer",
        lambda each: not each.record.optimizer,
        _why_unheld,
        "give {names} to the optimizer, and create it after the last conversion or copy of the "
        "model; if they are not meant to train, call requires_grad_(False) on them, name only what "
        "is to train, or leave them out with exclude=; under GradScaler check whether a step was "
        "skipped",
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
        lambda each: each.record.gradient == "none" and each.record.cleared,
        _why_cleared,
        _CLEAR_ELSEWHERE,
    ),
    _rule(
        "zero-gradient",
        lambda each: each.record.gradient == "zero" and each.record.cleared,
        _why_cleared,
        _CLEAR_ELSEWHERE,
    ),
    _rule(
        "no-gradient",
        lambda each: each.record.gradient == "none" and each.record.checkpointed,
        lambda results: (
            f"had no gradient when {_optimizer(results)} stepped: "
            f"{_agree(results, 'its', 'their')} forward ran in a reentrant checkpoint, none of "
            "whose inputs requires a gradient, so autograd recorded nothing there"
        ),
        "pass use_reentrant=False to the checkpoint around {names}, or have its input require a "
        "gradient, as model.enable_input_require_grads() of transformers does",
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
        lambda each: each.record.gradient == "zero" and bool(each.zeros),
        _why_beside_zeros,
        "if zeros are the right start there, as for LoRA or a residual branch, put two steps into "
        "the block: the second one has a gradient for {names}",
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
        "skipped",
        lambda each: each.was_left,
        lambda results: (
            f"had a gradient and a learning rate of {_rate(results)} when "
            f"{_optimizer(results)} stepped, which left {_agree(results, 'it', 'them')} as "
            f"{_agree(results, 'it was', 'they were')}"
        ),
        "see whether the optimizer skips steps on purpose, as some do with their first one: then "
        "put more steps into the block; otherwise look for why its step() writes nothing",
    ),
    _rule(
        "rounded-away",
        lambda _: True,
        _why_rounded_away,
        "keep {names} in float32, or give the step a learning rate that reaches the last digit",
    ),
)
"""The first rule that applies explains a parameter."""
