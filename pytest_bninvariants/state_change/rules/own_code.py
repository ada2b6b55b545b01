"""Rules for changes by a layer's own code: its forward wrote to it, or it was reset."""

from __future__ import annotations

from pytest_bninvariants.diagnosis.rule import Rule
from pytest_bninvariants.diagnosis.wording import name_list, name_the_writer, one_or_many
from pytest_bninvariants.selection.own_forward import OwnForward
from pytest_bninvariants.state_change.evidence import ChangeEvidence, layers_of, names_of

NOT_BY = (
    "written to by something other than an optimizer step, a checkpoint load, a collective or a "
    "normalisation seen here"
)


def _is_reset(evidence: ChangeEvidence) -> bool:
    layer = evidence.layer
    if layer.replaced or not layer.has_initial_statistics:
        return False
    return evidence.change.kind == "values" and evidence.is_initial


def _explain_reset(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names = names_of(evidence)
    listed = name_list(names)
    parameters = [each.change.name for each in evidence if not each.change.of_statistics]
    have = one_or_many(names, "has", "have")
    why = f"{listed} {have} the statistics of a new layer now (mean 0, variance 1)"
    if parameters:
        verb = one_or_many(parameters, "is that", "are those")
        why += f"; {name_list(parameters)} {verb} of a new layer, too"
    return (
        f"{why}: code that initialises or resets layers ran on {one_or_many(names, 'it', 'them')}",
        f"keep reset_running_stats(), initialisation and averaging callbacks away from {listed}, "
        f"or run them before its checkpoint is loaded; {name_the_writer()}",
    )


def _may_be_by_forward(evidence: ChangeEvidence) -> bool:
    own, change = evidence.layer.own_forward, evidence.change
    if own is None or evidence.layer.replaced or evidence.history.step is not None:
        return False
    return change.kind == "values" and (evidence.is_buffer or own.writes_parameters)


def _explain_forward(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names, tensors = names_of(evidence), [each.change.name for each in evidence]
    was = one_or_many(tensors, "was", "were")
    why = f"{name_list(tensors)} {was} {NOT_BY}; the forward of {name_list(names)} ran"
    return f"{why}{_in_mode(evidence)}, and may have done so", _fix_forward(evidence)


def _explain_bound(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names, tensors = name_list(names_of(evidence)), [each.change.name for each in evidence]
    now = one_or_many(tensors, "is another tensor now", "are other tensors now")
    it = one_or_many(tensors, "it", "them")
    return (
        f"{name_list(tensors)} {now}; the forward of {names} ran{_in_mode(evidence)}, and may have "
        f"put {it} there",
        _fix_forward(evidence),
    )


def _in_mode(evidence: list[ChangeEvidence]) -> str:
    """Return in which mode a forward ran, if that may decide whether it writes."""
    return " in training mode" if all(o.stops_in_eval for o in _own_forwards(evidence)) else ""


def _fix_forward(evidence: list[ChangeEvidence]) -> str:
    names, own = name_list(names_of(evidence)), _own_forwards(evidence)
    if all(each.max_norm is not None for each in own):
        return (
            f"set max_norm=None on {names}: with a max_norm, a forward scales down each longer row "
            "that it looks up, in eval, too"
        )
    if all(each.stops_in_eval for each in own):
        return (
            f"call .eval() on {names} before its forward runs, which stops what it writes only in "
            f"training mode; {name_the_writer()}"
        )
    return name_the_writer()


def _own_forwards(evidence: list[ChangeEvidence]) -> list[OwnForward]:
    return [layer.own_forward for layer in layers_of(evidence) if layer.own_forward is not None]


RESET: Rule[ChangeEvidence] = Rule(cause="reset", applies=_is_reset, explain=_explain_reset)
BOUND_BY_FORWARD: Rule[ChangeEvidence] = Rule(
    cause="replaced",
    applies=lambda evidence: evidence.replaced and _may_be_by_forward(evidence),
    explain=_explain_bound,
)
WRITTEN_BY_FORWARD: Rule[ChangeEvidence] = Rule(
    cause="in-place",
    applies=_may_be_by_forward,
    explain=_explain_forward,
)
