"""Which causes a layer's result has, and what each of them says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants.invariants.bn_updates.rules.order import diagnose
from pytest_bninvariants.invariants.bn_updates.state_history import WrongStatistic
from pytest_bninvariants.verdict import Place
from tests.invariants.bn_updates.results.builder import groups, result

HIDDEN: dict[str, Any] = {"compiled": True, "record": {"updates": 0}, "counter_change": 1}
WRONG = WrongStatistic(name="running_var", update=2, text="far off")
FITTING = WrongStatistic(name="running_mean", update=1, text="far off", fits="a sum")


def told(*results: Any) -> dict[str, str]:
    return {cause.name: f"{cause.why} -> {cause.fix}" for cause in diagnose(results)}


def place(line: int, call: str = "net()") -> Place:
    return Place(file="train.py", line=line, function="step", call=call)


CASES: list[tuple[dict[str, Any], dict[str, list[str]]]] = [
    ({}, {}),
    (
        {"provenance": {"updates": 2, "recomputed": 1}},
        {"recomputation": ["bn was updated 1 time in backward", "^2 = 0.19 -> "]},
    ),
    (
        {"provenance": {"updates": 2, "recomputed": 1, "repeated": 1}},
        {"recomputation": ["bn was updated 1 time in backward"]},
    ),
    ({"provenance": {"recomputed": 1}, "record": {"unreadable": True}}, {}),
    (
        {"provenance": {"updates": 2}},
        {
            "extra-forward": [
                "bn was updated in 2 forwards of the step; 2 updates with momentum 0.1 weigh",
                "on two views, pass times=2, and for micro-batches use momentum 1 - (1 - 0.1)^",
                "(1/2) = 0.0513, with which 2 updates weigh as much as one",
            ]
        },
    ),
    (
        {"provenance": {"updates": 2}, "layer": nn.BatchNorm1d(2, momentum=None)},
        {
            "extra-forward": [
                "in 2 forwards of the step -> run",
                "micro-batches or on two views, pass times=2",
            ]
        },
    ),
    (
        {"provenance": {"updates": 2}, "equally_often": False},
        {"extra-forward": ['pass times="forwards", without per=: no number fits']},
    ),
    (
        {"provenance": {"repeated": 1}},
        {"extra-forward": ["in 1 forward of the step, some of them with the same batch -> run"]},
    ),
    (
        {
            "provenance": {"updates": 2},
            "optimizer_steps": 2,
            "record": {"by_step": groups(1, 1)},
        },
        {
            "extra-forward": [
                "bn was updated in 2 forwards of 2 optimizer steps -> "
                'pass per="optimizer_step": each of the 2 steps has one'
            ]
        },
    ),
    (
        {
            "provenance": {"updates": 4},
            "optimizer_steps": 2,
            "record": {"by_step": groups(2, 2)},
        },
        {
            "extra-forward": [
                'pass times=2, per="optimizer_step", and for micro-batches use momentum 1 -'
            ]
        },
    ),
    (
        {
            "provenance": {"updates": 6},
            "optimizer_steps": 2,
            "steps": 2,
            "record": {"by_step": groups(3, 3)},
        },
        {"extra-forward": ["pass times=3, and for micro-batches use momentum"]},
    ),
    (
        {"provenance": {"updates": 2}, "record": {"by_forward": groups(2)}},
        {"extra-forward": ["bn was updated 2 times within one forward of the model, which calls"]},
    ),
    ({"provenance": {"in_eval": 1}}, {"update-in-eval": ["bn was updated in eval: the forward"]}),
    (
        {"provenance": {"updates": 0}, "record": {"updates": 0, "in_eval": 1}},
        {"stuck-in-eval": ["in each forward, though requires_grad is True: r", "-> call .train()"]},
    ),
    (
        {
            "provenance": {"updates": 0},
            "record": {"updates": 0, "in_eval": 1, "put_in_eval": place(1, "Net.train(True)")},
            "layer": nn.BatchNorm1d(2, affine=False),
        },
        {"stuck-in-eval": ["in each forward: running statistics", "-> have train() leave bn in"]},
    ),
    (
        {"times": 2, "record": {"in_eval": 1, "eval_by_step": groups(0, 1)}, "steps": 1},
        {"fewer-forwards": ["-> run as many forwards as times= says"]},
    ),
    (
        {"steps": 2, "optimizer_steps": 2, "record": {"eval_by_step": groups(1)}},
        {"stuck-in-eval": ["bn was in eval in each forward before 1 step of an optimizer"]},
    ),
    (
        {"provenance": {"updates": 0}, "record": {"updates": 0, "forwards": 0}},
        {"not-run": ["no forward of bn was seen in the step"]},
    ),
    (
        {"provenance": {"updates": 0}, "record": {"updates": 0, "idle": 1, "by_momentum_zero": 1}},
        {"momentum-zero": ["-> use momentum=None for a cumulative average"]},
    ),
    (
        {
            "provenance": {"updates": 0},
            "record": {"updates": 0, "idle": 1, "by_momentum_zero": 1},
            "layer": nn.InstanceNorm1d(2, track_running_stats=True),
        },
        {"momentum-zero": ["-> use a momentum above 0: InstanceNorm takes momentum=None for 0"]},
    ),
    (
        {"provenance": {"updates": 0}, "record": {"updates": 0, "idle": 1, "without_tracking": 1}},
        {"tracking-off": ["bn ran with track_running_stats=False, and so updated nothing"]},
    ),
    (
        {"provenance": {"updates": 0}, "updates_elsewhere": 1},
        {"updated-elsewhere": ["bn had other tensors during the forward"]},
    ),
    (
        {"provenance": {"updates": 0}, "record": {"updates": 0, "idle": 1}},
        {"not-written": ["bn normalised with batch statistics and did not write them"]},
    ),
    (
        {"times": 3, "steps": 2, "optimizer_steps": 2},
        {"fewer-forwards": [": 3 for each of 2 steps of optimizers -> run 3 forwards in training"]},
    ),
    (
        {"provenance": {"updates": 0}, "replaced": True, "type_now": "Identity"},
        {"replaced": ["Identity", "-> replace or convert bn before", "leave it out with exclude="]},
    ),
    (
        {**HIDDEN, "counter_change": 2, "replaced": True, "type_now": "BatchNorm1d"},
        {"extra-forward": ["bn was updated in 2 forwards of the step"]},
    ),
    (
        {**HIDDEN, "replaced": True, "type_now": None},
        {"replaced": ["bn"]},
    ),
    (
        {"provenance": {"updates": 0}},
        {"undone": ["bn was updated, and running statistics from before that were put back"]},
    ),
    (
        {"record": {"updates": 2}, "times": 2},
        {"undone": ["bn was updated, and running statistics from before that were put back"]},
    ),
    (
        {"provenance": {"wrong": (WRONG, FITTING)}},
        {"wrong-update": ["bn: running_mean is a sum; running_var is not the reference's -> "]},
    ),
    ({**HIDDEN, "provenance": {"wrong": (WRONG,)}}, {}),
    ({"unusable": [("running_mean", "NaN")]}, {"not-finite": ["bn took in a batch with values"]}),
    ({"provenance": {"miscounted": 1}}, {"miscounted": ["num_batches_tracked of bn did not move"]}),
    ({**HIDDEN, "provenance": {"miscounted": 1}}, {}),
    (
        {"provenance": {"written": "loaded", "written_at": place(7)}},
        {"loaded": ["bn got other running statistics from a state_dict during the step"]},
    ),
    ({"provenance": {"written": "reset"}}, {"reset": ["running statistics of bn were set during"]}),
    (
        {"provenance": {"written": "in-place"}},
        {"in-place": ["statistics of bn were written to by"]},
    ),
    ({**HIDDEN, "provenance": {"written": "in-place"}}, {}),
    ({**HIDDEN, "provenance": {"written": "loaded"}}, {}),
    ({**HIDDEN, "provenance": {"written": "reset"}}, {"reset": ["running statistics of bn were"]}),
    ({**HIDDEN, "counter_change": None, "provenance": {"written": "reset"}}, {}),
]


@pytest.mark.parametrize(("options", "causes"), CASES, ids=map(str, range(len(CASES))))
def test_a_result_has_its_causes(options: dict[str, Any], causes: dict[str, list[str]]) -> None:
    found = told(result(**options))
    assert list(found) == list(causes)
    for name, texts in causes.items():
        assert [text for text in texts if text not in found[name]] == []


@pytest.mark.parametrize("optimizers", [1, 2])
def test_steps_of_several_optimizers_are_told_of_where_there_are_several(optimizers: int) -> None:
    found = told(result(times=3, steps=2, optimizer_steps=2, optimizers=optimizers))
    assert ("where several optimizers step" in found["fewer-forwards"]) == (optimizers == 2)


def test_the_place_of_an_extra_forward_is_that_of_the_first_that_is_too_many() -> None:
    places = (place(1), place(2), place(3))
    (cause,) = diagnose([result(None, {"updates": 3, "places": places}, times=2)])
    assert cause.place is places[2]
    (cause,) = diagnose([result(None, {"updates": 4, "places": places}, times=3)])
    assert cause.place is None


def test_causes_of_several_layers_are_told_in_the_plural() -> None:
    found = told(
        result(None, {"updates": 2}, name="a"), result(None, {"updates": 3}, name="b", times=1)
    )
    assert found["extra-forward"].startswith("a and b were updated in 2 to 3 forwards of the step")
    shared = {"by_forward": groups(2)}
    both = [result(shared, {"updates": 2}, name=name) for name in "ab"]
    assert "which calls them several times" in told(*both)["extra-forward"]
    assert "give each call layers of its own" in told(*both)["extra-forward"]


def test_a_scripted_layer_is_unseen_and_is_given_no_cause_of_what_was_not_seen() -> None:
    layer = torch.jit.script(nn.BatchNorm1d(2))
    assert not told(result({"updates": 0}, {"in_eval": 1}, layer=layer))
