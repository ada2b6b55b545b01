"""What a parameter's record knows of the states that steps and loads led to."""

from __future__ import annotations

from typing import Any

import torch

from pytest_bninvariants.invariants.trains.parameter_record import ParameterRecord
from pytest_bninvariants.verdict import Place

FIRST, SECOND, THIRD = (torch.full((3,), value).double() for value in (1.0, 2.0, 3.0))
PLACE = Place(call="load_state_dict()", function="step", file="a.py", line=1)


def test_a_load_of_what_steps_led_to_is_no_news_and_one_of_other_values_is() -> None:
    record = ParameterRecord()
    record.note_state(FIRST)  # no step has moved it yet
    record.note_move()
    record.note_state(SECOND)
    record.note_load(SECOND, PLACE)
    assert (record.loaded, record.loaded_at) == (False, None)
    record.note_load(FIRST, PLACE)
    assert (record.loaded, record.loaded_at) == (True, PLACE)


def test_what_was_loaded_is_no_state_that_steps_led_to_until_one_moves_it() -> None:
    record = ParameterRecord()
    record.note_move()
    record.note_state(FIRST)
    record.note_load(SECOND, PLACE)
    record.note_state(SECOND)
    assert not record.knows_state(SECOND)
    record.note_move()
    record.note_state(THIRD)
    assert (record.loaded, record.loaded_at) == (False, None)
    assert record.knows_state(THIRD)


def test_the_largest_size_of_a_gradient_counts_and_nan_is_infinite() -> None:
    record = ParameterRecord()
    for size in (1.0, 3.0, 2.0):
        record.note_size(size)
    assert record.size == 3.0
    record.note_size(float("nan"))
    record.note_size(4.0)
    assert record.size == float("inf")


def test_values_without_anything_of_what_a_step_led_to_were_written_over() -> None:
    after = torch.tensor([1.0, -1.0]).double().repeat(16)
    written = torch.tensor([2.0, 2.0, -2.0, -2.0]).double().repeat(8)

    def record(**others: Any) -> ParameterRecord:
        return ParameterRecord(**{"moved": True, "after": after, **others})

    assert record().was_overwritten(written)
    assert not record().was_overwritten(after)
    assert not record().was_overwritten(None)
    assert not record(after=None).was_overwritten(written)
    assert not record(moved=False).was_overwritten(written)
    assert not record(loaded=True).was_overwritten(written)
    known = record()
    known.note_state(written)
    assert not known.was_overwritten(written)
