"""A wrong average is explained by its first rule, whether one tensor is wrong or several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pytest_bninvariants.invariants.in_sync.average_evidence import WholeAverage, WrongAverage
from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor
from pytest_bninvariants.invariants.in_sync.difference_rules import (
    TensorDifference,
    causes_of_difference,
)
from pytest_bninvariants.invariants.in_sync.early_update import EarlyUpdate
from pytest_bninvariants.invariants.in_sync.rules import causes_of_wrong_average
from pytest_bninvariants.selection.walk import Kind
from pytest_bninvariants.verdict import Cause, Place
from tests.invariants.in_sync.single_values import averaged

LOADED = Place(file="train.py", line=3, function="fit", call="load_state_dict()")
WHOLE = WholeAverage(
    model="'net'",
    average="'ema'",
    decay=0.9,
    used=0.9,
    early=None,
    swapped=False,
    nothing_updated=False,
    written=True,
    ran_first=None,
    steps=1,
    any_right=False,
)


def tensor(
    now: float = 1.0,
    name: str = "head.weight",
    kind: Kind = "parameter",
    decay: float | None = 0.9,
    dtype: torch.dtype = torch.float32,
) -> AverageTensor:
    """Return an average that was 1, of a model that came from 2 to 3."""
    made = averaged(1.0, now, 2.0, 3.0, decay, dtype, kind)
    watched = made.watched._replace(name=name, layer=name.rpartition(".")[0])
    return replace(made, watched=watched)


def wrong(made: AverageTensor, whole: WholeAverage = WHOLE, **more: Any) -> WrongAverage:
    facts = {
        "is_shared": False,
        "is_early": False,
        "layer_is_behind": False,
        "wrapper": "",
        "loaded_itself_at": None,
        "in_training": False,
        **more,
    }
    return WrongAverage(whole=whole, tensor=made, **facts)


def cause(*tensors: WrongAverage) -> Cause:
    (only,) = causes_of_wrong_average(tensors)
    return only


def mean(now: float = 1.0, decay: float | None = None) -> AverageTensor:
    return tensor(now, "bn.running_mean", "buffer", decay)


NOT_UPDATED = replace(WHOLE, nothing_updated=True)
CASES: dict[str, tuple[WrongAverage, str, str]] = {
    "swapped": (
        wrong(tensor(), replace(WHOLE, swapped=True)),
        "swapped",
        "'net' is the average of 'ema', and not the other way round",
    ),
    "shared": (
        wrong(tensor(), is_shared=True),
        "shared-memory",
        "the step made 'ema' and 'net' share head.weight",
    ),
    "loaded": (
        wrong(tensor(), loaded_itself_at=LOADED),
        "left-behind",
        "'ema' was loaded from itself: the state_dict that load_state_dict() got holds its own",
    ),
    "early": (
        wrong(tensor(1.1), is_early=True),
        "updated-early",
        "'ema' took the values that 'net' had before the optimizer's step",
    ),
    "stale": (
        wrong(tensor(1.1), replace(WHOLE, ran_first=False), is_early=True),
        "updated-early",
        "though its update ran after that: the update reads a copy of 'net'",
    ),
    "early and late": (
        wrong(
            tensor(1.1),
            replace(WHOLE, early=EarlyUpdate(decay=0.9, before=2, after=1)),
            is_early=True,
        ),
        "updated-early",
        "'ema' was updated 3 times: 2 before the optimizer's step",
    ),
    "nothing": (
        wrong(tensor(), replace(NOT_UPDATED, written=False)),
        "left-behind",
        "nothing in 'ema' was updated: no update of it ran in the step",
    ),
    "nothing but written": (
        wrong(tensor(), NOT_UPDATED),
        "left-behind",
        "it was written to, but kept its values, as by an update that reads 'ema' itself",
    ),
    "nothing, names": (
        wrong(tensor(), NOT_UPDATED, wrapper="module"),
        "left-behind",
        "the names of 'net' and 'ema' differ by the wrapper's 'module.'",
    ),
    "statistics": (
        wrong(mean()),
        "left-behind",
        "the running statistics of bn in 'ema' did not move, unlike those in 'net'",
    ),
    "part": (
        wrong(tensor(), layer_is_behind=True),
        "left-behind",
        "head in 'ema' did not move, unlike the rest: the update does not reach it",
    ),
    "tensor": (
        wrong(tensor()),
        "left-behind",
        "head.weight in 'ema' did not move, unlike the rest: the update does not reach it",
    ),
    "part, names": (
        wrong(tensor(), wrapper="module"),
        "left-behind",
        "reach it, as where it looks for names: the names of 'net' and 'ema' differ by the",
    ),
    "decay": (
        wrong(tensor(2.0), replace(WHOLE, used=0.5)),
        "other-decay",
        "'ema' was averaged with decay 0.5",
    ),
    "averaged": (
        wrong(mean(1.2)),
        "other-buffers",
        "the buffers of bn in 'ema' are averaged, not copied",
    ),
    "copied": (
        wrong(mean(3.0, 0.9)),
        "other-buffers",
        "the buffers of bn in 'ema' are copied, not averaged",
    ),
    "forward": (
        wrong(mean(7.0, 0.9), in_training=True),
        "training-mode",
        "bn in 'ema' is in training mode, so each forward of it moves running statistics",
    ),
}


@pytest.mark.parametrize(("each", "name", "why"), CASES.values(), ids=CASES)
def test_a_single_tensor_is_explained(each: WrongAverage, name: str, why: str) -> None:
    found = cause(each)
    assert found.name == name
    assert why in found.why
    watched = each.tensor.watched
    assert (found.layers, found.tensors) == ((watched.layer,), (watched.name,))


@pytest.mark.parametrize(
    ("each", "name"), [(case[0], case[1]) for case in CASES.values()], ids=CASES
)
def test_two_tensors_share_a_cause(each: WrongAverage, name: str) -> None:
    watched = each.tensor.watched
    end = watched.name.rpartition(".")[2]
    other = watched._replace(name=f"other.{end}", layer="other")
    found = cause(each, replace(each, tensor=replace(each.tensor, watched=other)))
    assert found.name == name
    assert found.layers == (watched.layer, "other")


@pytest.mark.parametrize(
    "each",
    [
        wrong(tensor(7.0)),
        wrong(mean(7.0)),
        wrong(mean(7.0, 0.9)),
        wrong(tensor(7.0), in_training=True),
        wrong(tensor(7.0, "bn.offset", "buffer"), in_training=True),
        wrong(tensor(7.0, kind="buffer", decay=None, dtype=torch.int64), in_training=True),
        wrong(tensor(1.1)),
    ],
)
def test_what_nothing_fits_is_not_explained(each: WrongAverage) -> None:
    assert causes_of_wrong_average([each]) == ()


@pytest.mark.parametrize(
    ("used", "why", "fix"),
    [
        (0.81, ", as by 2 updates in one step", "update 'ema' once per step, or"),
        (0.1, ": the weights are the wrong way round", "keep 0.9 of the old value: mine.lerp_(th"),
        (0.0, ": it is a copy of the model", "keep 0.9 of the old value: mine.lerp_(theirs, 1 - 0"),
        (0.5, "", "keep 0.9 of the old value: mine.lerp_(theirs, 1 - 0.9); or pass decay=0.5 if t"),
    ],
)
def test_another_decay_is_told_by_how_it_may_have_come_about(
    used: float, why: str, fix: str
) -> None:
    found = cause(wrong(tensor(used + (1 - used) * 3), replace(WHOLE, used=used)))
    assert found.why == f"'ema' was averaged with decay {used:g}{why}"
    assert found.fix.startswith(fix)


@pytest.mark.parametrize(
    ("used", "plain"), [(0.0, True), (0.1, True), (0.9**10, True), (0.9**11, False), (0.9, False)]
)
def test_a_decay_follows_from_the_expected_one_or_does_not(used: float, plain: bool) -> None:
    assert replace(WHOLE, used=used).has_plain_decay == plain


def test_a_copy_that_nobody_saw_written_may_have_been_updated_early() -> None:
    was_copy = replace(tensor(), before=tensor().was)
    unseen = replace(WHOLE, written=False)
    early = ", or it ran before the optimizer's step, when both models were equal"
    assert early in cause(wrong(was_copy, unseen)).why
    assert early not in cause(wrong(was_copy)).why
    assert early not in cause(wrong(tensor(), unseen)).why
    assert early not in cause(wrong(was_copy, unseen), wrong(tensor(), unseen)).why


def test_the_update_is_told_to_go_over_what_it_left_out() -> None:
    buffer = wrong(tensor(name="head.offset", kind="buffer"))
    assert "zip(ema.buffers(), net.buffers())" in cause(buffer).fix
    assert "parameters()" not in cause(buffer).fix
    assert cause(wrong(tensor()), buffer).fix.count("zip(") == 2


def test_statistics_that_are_to_be_averaged_are_advised_so() -> None:
    assert "mine.copy_(theirs)" in cause(wrong(mean())).fix
    assert "average the buffers, too" in cause(wrong(mean(decay=0.9))).fix
    assert "average the buffers, too" in cause(wrong(mean()), wrong(mean(decay=0.9))).fix


def difference(**facts: Any) -> TensorDifference:
    named = {"name": "bn.running_mean", "layer": "bn", "behind": "'copy'", "ahead": "'net'"}
    return TensorDifference(**{**named, **facts})


@pytest.mark.parametrize(
    ("facts", "name", "why"),
    [
        ({"is_shared": True}, "shared-memory", "the step made 'copy' and 'net' share bn.running"),
        ({"loaded_itself_at": LOADED}, "left-behind", "'copy' was loaded from itself"),
        ({"is_initial": True}, "left-behind", "statistics of bn in 'copy' are the initial ones"),
    ],
)
def test_a_tensor_that_differs_is_explained(facts: dict[str, Any], name: str, why: str) -> None:
    (found,) = causes_of_difference([difference(**facts)])
    assert found.name == name
    assert why in found.why
    assert (found.layers, found.tensors) == (("bn",), ("bn.running_mean",))


def test_models_that_are_each_behind_have_a_cause_each() -> None:
    both = [difference(is_initial=True), difference(is_initial=True, behind="'net'", ahead="'c'")]
    assert ["in 'copy'" in found.why for found in causes_of_difference(both)] == [True, False]
    assert causes_of_difference([difference()]) == ()
