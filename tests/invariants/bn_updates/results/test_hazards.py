"""Hazards of layers whose updates are right, and notes about how they were judged."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_bninvariants.invariants.bn_updates.hazards import hazards_of, notes_about
from pytest_bninvariants.invariants.bn_updates.state_history import WrongStatistic
from tests.invariants.bn_updates.results.builder import result

UNDONE: dict[str, Any] = {"provenance": {"updates": 0}}
HIDDEN: dict[str, Any] = {"compiled": True, "record": {"updates": 0}}
GUESS = WrongStatistic(name="running_var", update=1, text="far off")
FITTING = WrongStatistic(name="running_mean", update=1, text="far off", fits="a sum")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (UNDONE, "its running statistics were put back: the step leaves no update in them"),
        (
            {**UNDONE, "record": {"updates": 1}, "provenance": {"constant": 1}},
            "in 1 of 1 updates each channel of its batch had one value",
        ),
        ({"record": {"in_dummy_steps": 1}}, "it was updated in a step whose gradients are all"),
        ({"provenance": {"rounded_away": 1}}, "in 1 of 1 updates a narrow dtype rounded the whole"),
        (
            {"provenance": {"maybe_wrong": (GUESS, FITTING, GUESS)}},
            "its updates differ from BatchNorm's, perhaps on purpose: running_var: far off; "
            "running_mean is a sum",
        ),
        ({"provenance": {"by_custom_forward": 1}}, "it has a custom forward: its updates could"),
        ({"provenance": {"uncounted": 1}}, "its num_batches_tracked does not count its updates"),
    ],
)
def test_a_layer_that_holds_has_its_hazards(options: dict[str, Any], text: str) -> None:
    found = result(**options)
    (hazard,) = hazards_of([found], [found])
    assert hazard.name == "bn"
    assert hazard.text.startswith(text)
    assert not [*hazards_of([result(), result(**options, unusable=[("a", "NaN")])], [])]


def test_where_no_layer_is_to_update_each_is_a_hazard() -> None:
    found = [result(), result(name="other")]
    assert [each.name for each in hazards_of([], found)] == ["bn", "other"]
    assert not [*hazards_of(found[:1], found)]


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({}, None),
        ({**HIDDEN, "replaced": True}, "bn is another module now: judged by the counter"),
        (HIDDEN, "bn ran in compiled code, or where forwards cannot be seen: judged by the"),
        (
            {**HIDDEN, "counter_change": None, "provenance": {"written": "in-place"}},
            "bn ran where forwards cannot be seen, and without a counter: how many",
        ),
        (
            {"provenance": {"unjudged": 1}},
            "the values of bn were not checked against the reference",
        ),
        ({"compiled": True, "provenance": {"unjudged": 1}}, "the values of bn were not checked"),
    ],
)
def test_how_a_layer_was_judged_is_noted(options: dict[str, Any], note: str | None) -> None:
    notes = [*notes_about([result(**options)])]
    assert len(notes) == (note is not None)
    assert all(each.startswith(note or "") for each in notes)


def test_a_layer_whose_updates_are_hidden_has_no_values_to_check() -> None:
    hidden = result(**HIDDEN, provenance={"unjudged": 1})
    (note,) = notes_about([hidden])
    assert "judged by the counter" in note
