"""The rules that explain what an audit finds, and how their sentences are worded."""

from __future__ import annotations

from collections.abc import Callable

from pytest_bninvariants.audit.findings.finding import AuditFinding, How, layer_names
from pytest_bninvariants.diagnosis.rule import Rule
from pytest_bninvariants.diagnosis.wording import (
    FIND_FIRST_BAD_BATCH,
    NOT_STOPPED,
    PUT_IN_TRAINING,
    first_few,
    flipped,
    keep_in_eval,
    name_list,
    one_or_many,
    span,
    spare_recomputation,
)
from pytest_bninvariants.frames import relative_path
from pytest_bninvariants.verdict import Place

_SHOWN_KINDS = 3


def _layers(findings: list[AuditFinding]) -> str:
    """Return the names of layers, and their classes."""
    kinds = list(dict.fromkeys(finding.kind for finding in findings))
    return f"{name_list(layer_names(findings))} ({first_few(kinds, _SHOWN_KINDS)})"


def _was(findings: list[AuditFinding]) -> str:
    return one_or_many(layer_names(findings), "was", "were")


def _is(how: How) -> Callable[[AuditFinding], bool]:
    return lambda finding: finding.how == how


def _put_in_training(finding: AuditFinding) -> Place | None:
    return finding.put_in_training


def _explain_flip(findings: list[AuditFinding]) -> tuple[str, str]:
    did = f"{flipped(layer_names(findings))} {_normalised(findings)}; {NOT_STOPPED}"
    return f"{_layers(findings)} {did}", _keep_in_eval(findings)


def _explain_training(findings: list[AuditFinding]) -> tuple[str, str]:
    did = f"{_normalised(findings)}; {NOT_STOPPED}"
    return f"{_layers(findings)} {did}", _keep_in_eval(findings)


def _explain_no_grad(findings: list[AuditFinding]) -> tuple[str, str]:
    its = one_or_many(layer_names(findings), "its", "their")
    return (
        f"{_layers(findings)} {_normalised(findings)}, only under no_grad, and no optimizer holds "
        f"{its} parameters; no_grad does not stop running statistics",
        _keep_in_eval(findings),
    )


def _normalised(findings: list[AuditFinding]) -> str:
    """Return a clause that says how much layers normalised, and where first."""
    first, each = findings[0], one_or_many(layer_names(findings), "", "each ")
    batches = span([finding.batches for finding in findings], "batch", "batches")
    did = f"{each}normalised {batches} with batch statistics"
    place = first.context.place
    if place is not None:
        did += f", first at {_line(place)}"
    if first.put_in_training is None:
        did += ", in training mode since before the test or since it was created"
    return did


def _line(place: Place) -> str:
    tool = f", by {place.tool}" if place.tool else ""
    return f"{relative_path(place.file)}:{place.line} in {place.function}{tool}"


def _keep_in_eval(findings: list[AuditFinding]) -> str:
    names, first = layer_names(findings), findings[0]
    ran_at, put_in_training = first.context.place, first.put_in_training
    tool = None if ran_at is None else ran_at.tool
    if put_in_training is None and (tool is None or tool.startswith("torch.")):
        return (
            f"call .eval() on {name_list(names)} when the model is built, and after every train()"
        )
    return keep_in_eval(names, put_in_training or ran_at)


def _explain_reset(findings: list[AuditFinding]) -> tuple[str, str]:
    return (
        f"{_in_eval(findings)}, and {_was(findings)} reset after that: running_mean is 0 and "
        "running_var is 1, as in a new layer",
        "do not reset the statistics of frozen layers: keep reset_running_stats(), update_bn() "
        f"and the like away from {name_list(layer_names(findings))}",
    )


def _explain_written(findings: list[AuditFinding]) -> tuple[str, str]:
    its = one_or_many(layer_names(findings), "its", "their")
    return (
        f"{_in_eval(findings)}, and {its} statistics were written after that, by something other "
        "than a load or a forward in training mode",
        "put @pytest.mark.frozen_bn on the test and run it with --bn-trace, which names the "
        "operator and the line",
    )


def _in_eval(findings: list[AuditFinding]) -> str:
    place = findings[0].context.place
    ran = "" if place is None else f" at {_line(place)}"
    return f"{_layers(findings)} {_was(findings)} frozen and ran in eval{ran}"


def _explain_stuck(findings: list[AuditFinding]) -> tuple[str, str]:
    model = findings[0].context.model
    return (
        f"{_layers(findings)} {_was(findings)} in eval, as all of {model} was, while "
        f"{findings[0].optimizer} trained {model}: running statistics stood still",
        f"call .train() on {model} before its train step; to keep its statistics as they are, "
        "call .eval() on its BN layers alone after that",
    )


def _explain_recomputed(findings: list[AuditFinding]) -> tuple[str, str]:
    names = layer_names(findings)
    again = span([finding.batches for finding in findings], "time", "times")
    return (
        f"{_layers(findings)} {_was(findings)} updated {again} in backward, where activation "
        "checkpointing runs a forward again, with the same batch",
        spare_recomputation(names),
    )


def _explain_not_finite(findings: list[AuditFinding]) -> tuple[str, str]:
    return (
        f"the statistics of {_layers(findings)} hold NaN, infinity or a negative variance at the "
        "end of the test, and no later batch can undo that: every eval will give NaN",
        FIND_FIRST_BAD_BATCH,
    )


def _explain_unheld(findings: list[AuditFinding]) -> tuple[str, str]:
    names, first = layer_names(findings), findings[0]
    has = one_or_many(names, "has", "have")
    return (
        f"{_layers(findings)} {has} gradients when {first.optimizer} first trains "
        f"{first.context.model}, and no optimizer holds {one_or_many(names, 'its', 'their')} "
        "parameters",
        f"give the optimizer the parameters of {name_list(names)}; if they are not meant to "
        "train, call requires_grad_(False) on them, which also saves computing their gradients",
    )


RULES: tuple[Rule[AuditFinding], ...] = (
    Rule(cause="reset", applies=_is("reset"), explain=_explain_reset),
    Rule(cause="in-place", applies=_is("written"), explain=_explain_written),
    Rule(
        cause="stuck-in-eval",
        applies=_is("stuck"),
        explain=_explain_stuck,
        place=lambda finding: finding.stepped_at,
        did="stepped by",
    ),
    Rule(cause="recomputation", applies=_is("recomputed"), explain=_explain_recomputed),
    Rule(cause="not-finite", applies=_is("not-finite"), explain=_explain_not_finite),
    Rule(
        cause="not-in-optimizer",
        applies=_is("unheld"),
        explain=_explain_unheld,
        place=lambda finding: finding.stepped_at,
        did="stepped by",
    ),
    Rule(
        cause="no-grad",
        applies=_is("no-grad"),
        explain=_explain_no_grad,
        place=_put_in_training,
        did=PUT_IN_TRAINING,
    ),
    Rule(
        cause="mode-flip",
        applies=lambda finding: finding.flipped,
        explain=_explain_flip,
        place=_put_in_training,
        did=PUT_IN_TRAINING,
    ),
    Rule(
        cause="training-mode",
        applies=lambda _: True,
        explain=_explain_training,
        place=_put_in_training,
        did=PUT_IN_TRAINING,
    ),
)
"""The rules for findings; the first that applies explains one."""
