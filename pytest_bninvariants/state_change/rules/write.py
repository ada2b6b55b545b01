"""Rules for changes by something that wrote to a tensor, or replaced it."""

from __future__ import annotations

import inspect

from torch.nn.parallel import DistributedDataParallel

from pytest_bninvariants.diagnosis.rule import Rule
from pytest_bninvariants.diagnosis.wording import (
    clauses,
    describe_swap,
    give_own_memory,
    name_list,
    name_the_writer,
    one_or_many,
)
from pytest_bninvariants.state_change.evidence import (
    IDENTITY,
    ChangeEvidence,
    LayerEvidence,
    layers_of,
)
from pytest_bninvariants.state_change.rules.own_code import NOT_BY
from pytest_bninvariants.state_change.tensor_history import OptimizerStep
from pytest_bninvariants.verdict import Place

_REPLACED = {
    "gone": "is gone",
    "new": "is new",
    "dtype": "was cast",
    "shape": "has another shape",
    "layout": "has another layout",
    "initialised": "was uninitialised until its first batch",
}


def _is_loaded(evidence: ChangeEvidence) -> bool:
    return _is_written(evidence) and evidence.history.loaded_at is not None


def _explain_loaded(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    return (
        f"{_tensors(evidence)} got other values from a state_dict during the step",
        "load checkpoints before the guarded step, or leave these names out of what is loaded",
    )


def _is_broadcast(evidence: ChangeEvidence) -> bool:
    return _is_written(evidence) and evidence.history.exchanged_at is not None


def _explain_broadcast(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    return (
        f"{_tensors(evidence)} got other values from a collective",
        "have every rank start from the same state (load the checkpoint on all of them before "
        f"wrapping the model), or wrap it with {_no_exchange_in_forward()}=False",
    )


def _no_exchange_in_forward() -> str:
    """Return the option of DistributedDataParallel, which torch 2.13 has renamed."""
    known = inspect.signature(DistributedDataParallel).parameters
    new = "forward_sync_buffers"
    return new if new in known else "broadcast_buffers"


def _is_cast(evidence: ChangeEvidence) -> bool:
    others = evidence.normalised or evidence.history.step is not None
    return _is_written(evidence) and bool(evidence.casts) and not others


def _describe_casts(evidence: list[ChangeEvidence]) -> str:
    """Say which tensors were cast and cast back, through one dtype if that explains all of them."""
    types = frozenset.intersection(*(each.casts for each in evidence))
    listed = " or ".join(sorted(types)) or "narrower types"
    return f"{_tensors(evidence)} {_was(evidence)} cast to {listed} and back"


def _describe_swap(layer: LayerEvidence) -> str:
    """Say which module replaced a layer."""
    flipped = layer.in_training and not layer.began_in_training
    swap = describe_swap(layer.name, layer.type_before or "", layer.type_after)
    return f"{swap} in training mode" if flipped else swap


def _is_swapped(layer: LayerEvidence) -> bool:
    """Tell whether another module holds a layer's name now, or none does."""
    return layer.replaced and layer.type_before is not None


def _explain_replaced(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    swapped = [layer for layer in layers_of(evidence) if _is_swapped(layer)]
    others = [(each, _is_cast(each)) for each in evidence if not _is_swapped(each.layer)]
    cast = [each for each, is_cast in others if is_cast]
    why = [_describe_swap(layer) for layer in swapped]
    why += [_describe_casts(cast)] if cast else []
    why += [
        f"{each.change.name} {_REPLACED.get(each.change.kind, 'is another tensor now')}"
        for each, is_cast in others
        if not is_cast
    ]
    fix = "replace, convert or cast before the guarded step, and build the optimizer after that"
    if all(each.change.kind == "initialised" for each in evidence):
        fix = "run a batch before the guarded step: lazy modules take their shape from it"
    return clauses(why), fix


def _step(evidence: ChangeEvidence) -> OptimizerStep | None:
    return evidence.history.step if _is_written(evidence) else None


def _has_gradient(evidence: ChangeEvidence) -> bool:
    step = _step(evidence)
    return step is not None and step.gradient == "nonzero"


def _explain_gradient(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    why, fix = _explain_untied(evidence)
    tied = [each for each in evidence if each.tied]
    if not tied:
        return why, fix
    names, others = _tensors(tied), name_list([name for each in tied for name in each.tied])
    is_, gets = (
        one_or_many([each.change.name for each in tied], *pair)
        for pair in (("is", "are"), ("gets", "get"))
    )
    return (
        f"{why}; {names} {is_} tied to {others}",
        f"{fix}: that freezes {others} too, unless {names} {gets} {_its(tied)} own memory",
    )


def _explain_untied(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names = _tensors(evidence)
    why = f"{names} moved in a step of {_optimizer(evidence)}, with a gradient"
    if all(each.history.step and each.history.step.shares_memory for each in evidence):
        held = one_or_many([each.change.name for each in evidence], "another tensor", "others")
        return (
            f"{why}; the optimizer holds {held} with the same memory",
            give_own_memory(names, _its(evidence)),
        )
    if all(_was_switched_on(each) for each in evidence):
        return (
            f"{why}; requires_grad was switched on during the step",
            f"leave {names} out where requires_grad is switched on, and out of the optimizer",
        )
    leave = f"leave {_it(evidence)} out of the optimizer"
    if any(each.requires_gradient for each in evidence):
        why += "; requires_grad is True"
        return why, f"call requires_grad_(False) on {names}, and {leave}"
    why += "; requires_grad is False, but an optimizer only looks at .grad"
    return why, f"set .grad = None on {names} when freezing, or {leave}"


def _was_switched_on(evidence: ChangeEvidence) -> bool:
    now = evidence.requires_gradient or evidence.history.switched_on_at is not None
    return now and not evidence.required_gradient


def _decays(evidence: ChangeEvidence) -> bool:
    step = _step(evidence)
    if step is None or step.gradient == "nonzero":
        return False
    return evidence.factor is not None or (step.weight_decay > 0 and not step.has_moments)


def _explain_decay(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    first = evidence[0]
    step = first.history.step
    assert step is not None
    shrank = "" if first.factor is None else f", all values by the factor {first.factor:.6g}"
    decay = f" (weight_decay={step.weight_decay:g})" if step.weight_decay else ""
    return (
        f"{_tensors(evidence)} moved in a step of {_optimizer(evidence)}{decay} "
        f"with {_no_gradient(step)}{shrank}",
        "leave frozen parameters out of the optimizer, or put them in a group with weight_decay=0",
    )


def _is_stale(evidence: ChangeEvidence) -> bool:
    step = _step(evidence)
    return step is not None and step.gradient != "nonzero" and step.has_moments


def _explain_stale(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    step = evidence[0].history.step
    assert step is not None
    names = _tensors(evidence)
    return (
        f"{names} moved in a step of {_optimizer(evidence)} with {_no_gradient(step)}: "
        "the optimizer still has moments of earlier gradients"
        + (f", or of its weight_decay={step.weight_decay:g}" if step.weight_decay else ""),
        (
            f"set .grad = None on {names} when freezing (zero_grad(set_to_none=True)), or build "
            if step.gradient == "zero"
            else "build "
        )
        + f"a new optimizer without {_it(evidence)}",
    )


def _no_gradient(step: OptimizerStep) -> str:
    return "a gradient of zeros" if step.gradient == "zero" else "no gradient"


def _explain_in_place(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    step = evidence[0].history.step
    names = _tensors(evidence)
    if step is not None:
        return (
            f"{names} moved in a step of {_optimizer(evidence)} with {_no_gradient(step)}, "
            "and neither its moments nor its weight decay explain that",
            f"leave {_it(evidence)} out of the optimizer",
        )
    why = f"{names} {_was(evidence)} {NOT_BY}"
    holder = evidence[0].history.holder
    if holder:
        why += f"; {holder} holds {_it(evidence)} and stepped without moving {_it(evidence)}, but "
        why += "an optimizer that wraps it may have"
    if evidence[0].graph_replayed:
        why += "; a device graph was replayed, whose writes are not seen: it does what it "
        why += "recorded, in the modes that layers had when it was captured"
    elif evidence[0].compiled_code_ran:
        why += "; compiled code ran, whose writes are not seen"
    outside = evidence[0].ran_outside
    if outside is not None:
        why += f"; {outside.name} has the same memory, and ran"
    return why, name_the_writer()


def _explain_eps(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names = name_list([each.change.name for each in evidence])
    return (
        f"eps of {names} {_was(evidence)} set; every output depends on it, in eval too",
        f"set eps of {names} before the guarded step: when building the model, or loading it",
    )


def _explain_extra(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    kept = "which the model keeps beside its parameters and buffers"
    return (
        f"{_tensors(evidence)}, {kept}, {_was(evidence)} set during the step",
        f"set {_it(evidence)} before the guarded step: when building the model, or loading it",
    )


def _it(evidence: list[ChangeEvidence]) -> str:
    return one_or_many([each.change.name for each in evidence], "it", "them")


def _its(evidence: list[ChangeEvidence]) -> str:
    return one_or_many([each.change.name for each in evidence], "its", "their")


def _was(evidence: list[ChangeEvidence]) -> str:
    return one_or_many([each.change.name for each in evidence], "was", "were")


def _is_written(evidence: ChangeEvidence) -> bool:
    change = evidence.change
    return change.of_tensor and change.kind not in IDENTITY and change.kind != "initialised"


def _tensors(evidence: list[ChangeEvidence]) -> str:
    return name_list([each.change.name for each in evidence])


def _optimizer(evidence: list[ChangeEvidence]) -> str:
    step = evidence[0].history.step
    assert step is not None
    return f"{step.optimizer} (group {step.group})"


def _place_of_step(evidence: ChangeEvidence) -> Place | None:
    return None if evidence.history.step is None else evidence.history.step.place


LOADED: Rule[ChangeEvidence] = Rule(
    cause="loaded",
    applies=_is_loaded,
    explain=_explain_loaded,
    place=lambda evidence: evidence.history.loaded_at,
    did="loaded by",
)
BROADCAST: Rule[ChangeEvidence] = Rule(
    cause="broadcast",
    applies=_is_broadcast,
    explain=_explain_broadcast,
    place=lambda evidence: evidence.history.exchanged_at,
    did="exchanged by",
)
REPLACED: Rule[ChangeEvidence] = Rule(
    cause="replaced",
    applies=lambda evidence: evidence.replaced or _is_cast(evidence),
    explain=_explain_replaced,
)
EPS_SET: Rule[ChangeEvidence] = Rule(
    cause="eps-set",
    applies=lambda evidence: evidence.change.kind == "eps",
    explain=_explain_eps,
)
STEP_AFTER_SWITCH: Rule[ChangeEvidence] = Rule(
    cause="gradient-step",
    applies=lambda evidence: (
        _has_gradient(evidence)
        and not evidence.required_gradient
        and evidence.history.switched_on_at is not None
    ),
    explain=_explain_gradient,
    place=lambda evidence: evidence.history.switched_on_at,
    did="switched on by",
)
GRADIENT_STEP: Rule[ChangeEvidence] = Rule(
    cause="gradient-step",
    applies=_has_gradient,
    explain=_explain_gradient,
    place=_place_of_step,
    did="stepped by",
)
WEIGHT_DECAY: Rule[ChangeEvidence] = Rule(
    cause="weight-decay",
    applies=_decays,
    explain=_explain_decay,
    place=_place_of_step,
    did="stepped by",
)
STALE_MOMENTUM: Rule[ChangeEvidence] = Rule(
    cause="stale-momentum",
    applies=_is_stale,
    explain=_explain_stale,
    place=_place_of_step,
    did="stepped by",
)
EXTRA_STATE_SET: Rule[ChangeEvidence] = Rule(
    cause="in-place",
    applies=lambda evidence: evidence.change.kind == "extra",
    explain=_explain_extra,
)
IN_PLACE: Rule[ChangeEvidence] = Rule(
    cause="in-place",
    applies=_is_written,
    explain=_explain_in_place,
    place=_place_of_step,
    did="stepped by",
)
