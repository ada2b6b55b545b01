"""Rules for changes that a forward of a BN layer made."""

from __future__ import annotations

from pytest_bninvariants.diagnosis.rule import Rule
from pytest_bninvariants.diagnosis.wording import (
    NOT_STOPPED,
    PUT_IN_TRAINING,
    flipped,
    give_own_memory,
    keep_in_eval,
    name_list,
    one_or_many,
    span,
)
from pytest_bninvariants.selection.bn_layers import STATISTICS
from pytest_bninvariants.state_change.evidence import (
    ChangeEvidence,
    LayerEvidence,
    layers_of,
    names_of,
)
from pytest_bninvariants.verdict import Place


def _put_in_training(evidence: ChangeEvidence) -> Place | None:
    return evidence.layer.activity.put_in_training


def _ran_at(evidence: ChangeEvidence) -> Place | None:
    return evidence.layer.activity.ran_at


def _shared_at(evidence: ChangeEvidence) -> Place | None:
    return evidence.layer.activity.shared_at


def _ran_outside_at(evidence: ChangeEvidence) -> Place | None:
    return None if evidence.ran_outside is None else evidence.ran_outside.place


def _lacks_statistics(evidence: ChangeEvidence) -> bool:
    layer = evidence.layer
    return evidence.normalised and (
        not layer.had_statistics or layer.activity.without_statistics > 0
    )


def _explain_lacking(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names = names_of(evidence)
    listed = name_list(names)
    pairs = (("has", "have"), ("it", "they"), ("its", "their"), ("was", "were"))
    has, it, its, was = (one_or_many(names, *pair) for pair in pairs)
    if all(layer.had_statistics for layer in layers_of(evidence)):
        return (
            f"{listed} {was} in eval and {_did(evidence)}: {its} running statistics were "
            "removed during the step, or track_running_stats was switched off",
            f"leave running_mean, running_var and track_running_stats of {listed} as they are",
        )
    return (
        f"{listed} {has} no running statistics, so {it} {_did(evidence)}, whatever {its} mode",
        f"build {listed} with track_running_stats=True and load statistics, "
        "or accept it with allow_batch_stats=True",
    )


def _is_recomputed(evidence: ChangeEvidence) -> bool:
    activity = evidence.layer.activity
    return evidence.normalised and 0 < activity.batches == activity.recomputed


def _explain_recomputation(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names = names_of(evidence)
    return (
        f"{name_list(names)} {_did(evidence)}, all in backward, where activation checkpointing "
        "runs a forward again",
        f"keep {name_list(names)} in eval until backward is over: the forward runs again, in "
        "whatever mode the layer has then",
    )


def _is_updated_by_others(evidence: ChangeEvidence) -> bool:
    activity = evidence.layer.activity
    return evidence.normalised and 0 < activity.batches == activity.by_others == activity.in_eval


def _explain_others(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names = names_of(evidence)
    listed = name_list(names)
    batches = _batches([layer.activity.batches for layer in layers_of(evidence)])
    function = evidence[0].layer.activity.function
    flag = "training" if function == "batch_norm" else "use_input_stats"
    return (
        f"{listed} {one_or_many(names, 'was', 'were')} in eval and did not run: {function} was "
        f"called with {one_or_many(names, 'its', 'their')} running statistics and {flag}=True, "
        f"on {batches}",
        f"call {listed} {one_or_many(names, 'itself', 'themselves')}, or pass {function} the "
        f"layer's own mode, {flag}={names[0] or 'self'}.training",
    )


def _updates_in_eval(evidence: ChangeEvidence) -> bool:
    activity = evidence.layer.activity
    return evidence.normalised and 0 < activity.batches + activity.own_forwards == activity.in_eval


def _explain_update_in_eval(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names = names_of(evidence)
    its, layers = one_or_many(names, "its", "their"), one_or_many(names, "layer", "layers")
    why = f"{name_list(names)} {one_or_many(names, 'was', 'were')} in eval and {_did(evidence)}: "
    why += f"{its} forward ignores self.training"
    if all(layer.activity.own_forwards for layer in layers_of(evidence)):
        return why, f"have the forward of {name_list(names)} update only while self.training"
    return (
        why,
        f"have the forward of {name_list(names)} pass training=self.training to batch_norm, or "
        f"replace the {layers} with nn.BatchNorm",
    )


def _is_flipped(evidence: ChangeEvidence) -> bool:
    layer, activity = evidence.layer, evidence.layer.activity
    if not evidence.normalised or layer.began_in_training:
        return False
    ran_in_training = activity.batches + activity.own_forwards > activity.in_eval
    return activity.flipped or ran_in_training or activity.in_compiled_code


def _explain_flip(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names = names_of(evidence)
    return f"{name_list(names)} {flipped(names)} {_did(evidence)}", _keep_in_eval(evidence)


def _is_in_training(evidence: ChangeEvidence) -> bool:
    return evidence.normalised and evidence.layer.began_in_training


def _explain_training(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names, layers = names_of(evidence), layers_of(evidence)
    why = f"{name_list(names)} {one_or_many(names, '', 'each ')}{_did(evidence)}"
    activity = layers[0].activity
    if activity.put_in_training is None:
        why += ", in training mode since before the step"
        if activity.ran_at is not None and activity.ran_at.tool is not None:
            why += f"; the forward was run by {activity.ran_at.tool}"
    if not any(layer.trains for layer in layers):
        why += f"; {NOT_STOPPED}"
    return why, _put_in_eval(evidence) if activity.put_in_training is None else _keep_in_eval(
        evidence
    )


def _put_in_eval(evidence: list[ChangeEvidence]) -> str:
    """Return how to put layers in eval that nothing in the step put in training mode."""
    names, overriding = names_of(evidence), evidence[0].layer.overrides_train
    fix = f"call .eval() on {name_list(names)} before the step"
    if evidence[0].layer.activity.in_graph:
        fix += ", and capture the graph after that: it keeps the modes that it was captured in"
    if overriding:
        it = one_or_many(names, "it", "them")
        fix += f"; if {overriding}.train() is to keep {it} in eval, call that once after "
        fix += "construction, since a new model is in training mode"
    return fix


def _keep_in_eval(evidence: list[ChangeEvidence]) -> str:
    return keep_in_eval(names_of(evidence), evidence[0].layer.activity.put_in_training)


def _did(evidence: list[ChangeEvidence]) -> str:
    """Return a clause that says what layers did, as far as it was seen."""
    layers = layers_of(evidence)
    eager = [layer.activity.batches or layer.activity.failed for layer in layers]
    own = [layer.activity.own_forwards for layer in layers]
    if all(eager):
        unseen = any(layer.activity.may_have_run_unseen for layer in layers)
        more = ", and perhaps more in compiled code" if unseen else ""
        return f"normalised {_batches(eager)} with batch statistics{_in_backward(layers)}{more}"
    if all(own):
        its = one_or_many(names_of(evidence), "its", "their")
        mode = "" if all(layer.activity.in_eval for layer in layers) else " in training mode"
        return f"ran {_batches(own)}{mode}, with {its} own forward"
    if all(map(any, zip(eager, own, strict=True))):
        return "normalised with batch statistics, or ran code of its own"
    if all(layer.activity.in_graph for layer in layers):
        return "normalised with batch statistics in a device graph"
    return "normalised with batch statistics, partly in compiled code"


def _batches(counts: list[int]) -> str:
    return span(counts, "batch", "batches")


def _in_backward(layers: list[LayerEvidence]) -> str:
    counts = [layer.activity.recomputed for layer in layers]
    partly = any(0 < layer.activity.recomputed < layer.activity.batches for layer in layers)
    return f", {max(counts)} of them again in backward" if partly else ""


def _is_shared(evidence: ChangeEvidence) -> bool:
    return evidence.change.name.rpartition(".")[2] in evidence.layer.activity.shared


def _explain_shared(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    layers, names = layers_of(evidence), names_of(evidence)
    others = name_list(list(dict.fromkeys(layer.activity.shared_with for layer in layers)))
    its = one_or_many(names, "its", "their")
    shared = dict.fromkeys(each.change.name.rpartition(".")[2] for each in evidence)
    fix = f"give {name_list(names)} {its} own {name_list(list(shared))}: a clone() of {others}'s"
    if any(layer.activity.shared_outside for layer in layers):
        fix = give_own_memory("each model", "its")
    return f"{_same_memory(evidence, others)}, which normalised with batch statistics", fix


def _same_memory(evidence: list[ChangeEvidence], others: str) -> str:
    """Return a clause that says which statistics share memory with those of others."""
    listed, tensors = name_list(names_of(evidence)), [each.change.name for each in evidence]
    if {name.rpartition(".")[2] for name in tensors} >= set(STATISTICS):
        return f"statistics of {listed} are the same memory as those of {others}"
    it_is = one_or_many(tensors, "is the same memory as that", "are the same memory as those")
    return f"{name_list(tensors)} {it_is} of {others}"


def _ran_outside(evidence: ChangeEvidence) -> bool:
    return evidence.change.of_statistics and evidence.ran_outside is not None


def _ran_as_graph(evidence: ChangeEvidence) -> bool:
    run = evidence.ran_outside
    return _ran_outside(evidence) and run is not None and run.is_graph


def _explain_alias(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    run = evidence[0].ran_outside
    assert run is not None
    return f"{_same_memory(evidence, run.name)}, which ran", give_own_memory("each model", "its")


def _explain_outside(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names = names_of(evidence)
    it = one_or_many(names, "it", "them")
    return (
        f"statistics of {name_list(names)} moved, though no forward of {it} used batch statistics; "
        "a module outside the model that shares their memory ran, such as a traced, scripted or "
        "exported copy, which keeps the mode that it was made in",
        "call model.eval() before tracing or exporting, or trace a deep copy of the model",
    )


NO_STORED_STATISTICS: Rule[ChangeEvidence] = Rule(
    cause="no-stored-statistics",
    applies=_lacks_statistics,
    explain=_explain_lacking,
    place=_put_in_training,
    did=PUT_IN_TRAINING,
)
RECOMPUTATION: Rule[ChangeEvidence] = Rule(
    cause="recomputation",
    applies=_is_recomputed,
    explain=_explain_recomputation,
    place=_ran_at,
    did="run by",
)
UPDATE_BY_OTHERS: Rule[ChangeEvidence] = Rule(
    cause="update-in-eval",
    applies=_is_updated_by_others,
    explain=_explain_others,
    place=_ran_at,
    did="by",
)
UPDATE_IN_EVAL: Rule[ChangeEvidence] = Rule(
    cause="update-in-eval",
    applies=_updates_in_eval,
    explain=_explain_update_in_eval,
    place=_ran_at,
    did="run by",
)
MODE_FLIP: Rule[ChangeEvidence] = Rule(
    cause="mode-flip",
    applies=_is_flipped,
    explain=_explain_flip,
    place=_put_in_training,
    did=PUT_IN_TRAINING,
)
TRAINING_MODE: Rule[ChangeEvidence] = Rule(
    cause="training-mode",
    applies=_is_in_training,
    explain=_explain_training,
    place=_put_in_training,
    did=PUT_IN_TRAINING,
)
UPDATE_OF_SHARED: Rule[ChangeEvidence] = Rule(
    cause="update-in-eval",
    applies=_is_shared,
    explain=_explain_shared,
    place=_shared_at,
    did="run by",
)
UPDATE_IN_GRAPH: Rule[ChangeEvidence] = Rule(
    cause="update-in-eval",
    applies=_ran_as_graph,
    explain=_explain_outside,
    place=_ran_outside_at,
    did="run by",
)
UPDATE_OF_ALIAS: Rule[ChangeEvidence] = Rule(
    cause="update-in-eval",
    applies=_ran_outside,
    explain=_explain_alias,
    place=_ran_outside_at,
    did="run by",
)
