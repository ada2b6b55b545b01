"""What the result for one layer says, by each thing that it depends on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from pytest_bninvariants.invariants.bn_updates.state_history import Provenance, WrongStatistic
from tests.invariants.bn_updates.results.builder import groups, result

NO: dict[str, Any] = {}
HIDDEN: dict[str, Any] = {"compiled": True, "record": {"updates": 0}}
WRITTEN: dict[str, Any] = {"written": "in-place"}


@pytest.mark.parametrize(
    ("options", "unseen"),
    [
        ({}, False),
        ({"record": {"updates": 0}}, False),
        ({"provenance": WRITTEN}, False),
        ({"compiled": True}, False),
        (HIDDEN, True),
        ({"compiled": True, "provenance": WRITTEN}, True),
        ({"replaced": True, "record": {"updates": 0}}, True),
        ({"record": {"unreadable": True}}, True),
        ({"layer": torch.jit.script(nn.BatchNorm1d(2)), "record": {"updates": 0}}, True),
    ],
)
def test_a_layer_is_unseen_where_what_is_hidden_may_have_updated_it(
    options: dict[str, Any], unseen: bool
) -> None:
    assert result(**options).unseen == unseen


@pytest.mark.parametrize(
    ("options", "by_counter", "unknowable", "updates"),
    [
        ({"counter_change": 2}, False, False, 1),
        ({"counter_change": None, "provenance": WRITTEN}, False, False, 1),
        ({**HIDDEN, "counter_change": 2}, True, False, 2),
        ({**HIDDEN, "counter_change": 0}, True, False, 0),
        ({**HIDDEN, "counter_change": -3}, True, False, 0),
        ({**HIDDEN, "counter_change": None}, False, False, 1),
        ({**HIDDEN, "counter_change": None, "provenance": WRITTEN}, False, True, 1),
    ],
)
def test_the_counter_tells_of_a_layer_that_is_unseen(
    options: dict[str, Any], by_counter: bool, unknowable: bool, updates: int
) -> None:
    found = result(**options)
    assert (found.by_counter, found.unknowable) == (by_counter, unknowable)
    assert found.updates == updates


def test_the_updates_that_are_expected_are_those_of_all_steps() -> None:
    assert result(times=2, steps=3).expected == 6
    assert result(times="forwards", steps=3).expected is None


@pytest.mark.parametrize(
    ("optimizer_steps", "updates", "by_step", "options", "each"),
    [
        (1, 3, (3,), NO, 3),
        (0, 3, (3,), NO, 3),
        (2, 4, (2, 2), NO, 2),
        (2, 4, (1, 3), NO, None),
        (2, 4, (4,), NO, None),
        (2, 4, (1, 1), NO, None),
        (2, 5, (2, 3), NO, None),
        (2, 2, (1, 1), NO, 1),
        (2, 1, (), {**HIDDEN, "counter_change": 4}, 2),
        (2, 1, (), {**HIDDEN, "counter_change": 5}, None),
    ],
)
def test_updates_are_told_by_step_if_each_step_had_as_many(
    optimizer_steps: int,
    updates: int,
    by_step: tuple[int, ...],
    options: dict[str, Any],
    each: int | None,
) -> None:
    record = {**options.get("record", {}), "by_step": groups(*by_step)}
    found = result(
        **{
            **options,
            "record": record,
            "provenance": {"updates": updates},
            "optimizer_steps": optimizer_steps,
        }
    )
    assert found.updates_per_step == each
    assert found.is_one_per_step == (optimizer_steps == 2 and each == 1)


@pytest.mark.parametrize(("optimizer_steps", "in_eval"), [(1, 1), (2, 2), (3, 2)])
def test_what_runs_in_eval_after_the_last_step_counts_for_none(
    optimizer_steps: int, in_eval: int
) -> None:
    record = {"eval_by_step": groups(1, 2)}
    assert result(record, optimizer_steps=optimizer_steps).steps_in_eval == in_eval
    assert result(optimizer_steps=optimizer_steps).steps_in_eval == 0
    dropped = groups(1, 2)
    dropped.drop(1)
    assert result({"eval_by_step": dropped}, optimizer_steps=1).steps_in_eval == 1


def test_a_layer_is_shared_if_one_forward_updated_it_more_than_once() -> None:
    assert result({"by_forward": groups(1, 2, 1)}).shared_by == 2
    assert result({"by_forward": groups(1, 1)}).shared_by == 0
    assert result({"by_forward": groups(2), "updates": 0}, compiled=True).shared_by == 0


@pytest.mark.parametrize(
    ("options", "undone"),
    [
        ({"provenance": {"updates": 0}}, True),
        ({}, False),
        ({"provenance": {"updates": 0}, "updates_elsewhere": 1}, False),
        ({"provenance": {"updates": 0}, "record": {"updates": 2}, "updates_elsewhere": 1}, True),
        ({"provenance": {"updates": 0}, "record": {"updates": 0}}, False),
        ({"provenance": {"updates": 0}, "record": {"unreadable": True}}, False),
    ],
)
def test_updates_are_undone_if_nothing_led_to_the_statistics(
    options: dict[str, Any], undone: bool
) -> None:
    found = result(**options)
    assert found.undone == undone
    if undone:
        assert not found.counts_wrongly


@pytest.mark.parametrize(
    ("record", "updates", "wanted"),
    [
        ({}, 0, False),
        ({"is_to_train": True}, 0, True),
        ({"updates": 1}, 0, True),
        ({}, 1, True),
        ({"in_eval": 0}, 0, True),
        ({"forwards": 2}, 0, True),
    ],
)
def test_a_layer_is_to_update_if_somebody_trains_it_or_it_ran_so(
    record: dict[str, Any], updates: int, wanted: bool
) -> None:
    frozen = {"is_to_train": False, "updates": 0, "forwards": 1, "in_eval": 1} | record
    assert result(frozen, {"updates": updates}).is_to_update == wanted
    if record.keys() & {"in_eval", "forwards"}:
        assert not result(frozen, {"updates": 0}, layer=FrozenBatchNorm2d(2)).is_to_update


@pytest.mark.parametrize(
    ("times", "updates", "idle", "wrong", "few"),
    [
        (1, 1, 0, False, False),
        (1, 2, 0, True, False),
        (2, 1, 0, True, True),
        ("forwards", 1, 0, False, False),
        ("forwards", 1, 1, True, True),
        ("forwards", 0, 0, True, True),
    ],
)
def test_updates_are_counted_against_those_expected(
    times: Any, updates: int, idle: int, wrong: bool, few: bool
) -> None:
    found = result({"idle": idle}, {"updates": updates, "places": (None,)}, times=times)
    assert (found.counts_wrongly, found.lacks_updates) == (wrong, few)


def test_a_layer_that_is_unseen_lacks_no_updates_that_were_seen_to_lack() -> None:
    found = result(**HIDDEN, counter_change=1, times=2)
    assert found.counts_wrongly
    assert not found.lacks_updates
    assert not result(**HIDDEN, counter_change=None, provenance=WRITTEN, times=2).counts_wrongly


@pytest.mark.parametrize(
    ("provenance", "change", "uncounted"),
    [
        ({}, 0, False),
        ({"by_calls": 1}, 0, True),
        ({"by_calls": 1}, 1, False),
        ({"by_calls": 1}, None, False),
        ({"uncounted": 1}, 1, True),
    ],
)
def test_a_counter_that_does_not_count_is_told(
    provenance: dict[str, Any], change: int | None, uncounted: bool
) -> None:
    assert result(None, provenance, counter_change=change).uncounted == uncounted


WRONG = WrongStatistic(name="running_var", update=2, text="far off")


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, []),
        ({"times": 2}, [("bn", "1 update, expected 2")]),
        ({"times": 2, "record": {"idle": 1}}, [("bn", "1 update, 1 forward without, expected 2")]),
        (
            {"times": "forwards", "record": {"idle": 2}},
            [("bn", "1 update, 2 forwards without, one a forward")],
        ),
        ({"provenance": {"recomputed": 1}}, [("bn", "1 update in backward")]),
        ({"provenance": {"recomputed": 1, "repeated": 1}}, [("bn", "1 update in backward")]),
        (
            {"provenance": {"recomputed": 1, "repeated": 2}},
            [("bn", "1 update in backward; 1 update with a batch that it had already used")],
        ),
        ({"provenance": {"in_eval": 2}}, [("bn", "2 updates in eval")]),
        (
            {"provenance": {"miscounted": 1}},
            [("bn", "1 update that num_batches_tracked counted as more or less than one")],
        ),
        ({"provenance": WRITTEN}, [("bn", "written to outside its updates")]),
        ({"provenance": {"wrong": (WRONG,)}}, [("bn.running_var", "update 2: far off")]),
        (
            {"unusable": [("running_mean", "2 NaN")], "name": ""},
            [("running_mean", "2 NaN")],
        ),
        ({**HIDDEN, "provenance": {"wrong": (WRONG,), "in_eval": 1, **WRITTEN}}, []),
    ],
)
def test_what_is_wrong_with_a_layer_is_told(
    options: dict[str, Any], changes: list[tuple[str, str]]
) -> None:
    found = result(**options)
    assert [(each.name, each.text) for each in found.changes()] == changes
    assert all(each.layer == found.name and each.kind == "update" for each in found.changes())
    assert found.holds == (not changes)


def test_a_history_keeps_the_first_places_and_wrong_statistics_and_the_last_batches() -> None:
    provenance = Provenance()
    assert provenance.wants_place
    assert not Provenance(places=(None,) * 4).wants_place
    told = provenance.with_wrong([WRONG] * 2, is_guess=False).with_wrong([WRONG] * 2, is_guess=True)
    assert (len(told.wrong), len(told.maybe_wrong)) == (2, 2)
    assert len(told.with_wrong([WRONG] * 2, is_guess=False).wrong) == 3
    assert len(told.with_wrong([WRONG] * 2, is_guess=True).maybe_wrong) == 3
