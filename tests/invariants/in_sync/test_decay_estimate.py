"""The decay that an update used is read off the values that it left, in as few digits as fit."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor
from pytest_bninvariants.invariants.in_sync.decay_estimate import estimate_decay
from pytest_bninvariants.selection.walk import Kind
from tests.invariants.in_sync.single_values import averaged


def moved(used: float, was: float = 1.0, kind: Kind = "parameter") -> AverageTensor:
    """Return an average that moved with this decay, where 0.5 was expected."""
    return averaged(was, used * was + (1 - used) * 3, 3.0, 3.0, 0.5, kind=kind)


@pytest.mark.parametrize("used", [0.0, 0.125, 0.9, 0.9999, 0.999999])
def test_the_decay_that_fits_all_is_told(used: float) -> None:
    assert estimate_decay([moved(used), moved(used, was=-2.0)]) == used


def test_two_decays_are_none() -> None:
    assert estimate_decay([moved(0.9), moved(0.8, was=-2.0)]) is None


@pytest.mark.parametrize("used", [-0.5, 1.5])
def test_a_weight_that_is_no_decay_is_none(used: float) -> None:
    assert estimate_decay([moved(used)]) is None


def test_parameters_are_asked_and_buffers_only_if_there_are_no_others() -> None:
    assert estimate_decay([moved(0.9), moved(0.8, kind="buffer")]) == 0.9
    assert estimate_decay([moved(0.8, kind="buffer")]) == 0.8


def test_what_was_left_behind_says_nothing_of_the_decay() -> None:
    left = averaged(1.0, 1.0, 3.0, 3.0, 0.5, kind="parameter")
    assert left.is_left_behind
    assert estimate_decay([left, moved(0.9)]) == 0.9
    assert estimate_decay([left]) is None


def test_copies_and_integers_say_nothing_of_the_decay() -> None:
    copied = averaged(1.0, 3.0, 3.0, 3.0, None, kind="parameter")
    counted = averaged(1, 3, 3, 3, 0.5, torch.int64, kind="parameter")
    assert estimate_decay([copied, counted]) is None
    assert estimate_decay([copied, counted, moved(0.9)]) == 0.9


@pytest.mark.parametrize("model", [1.0, math.inf, math.nan])
def test_values_that_do_not_differ_or_are_not_finite_say_nothing(model: float) -> None:
    assert estimate_decay([averaged(1.0, 1.0, model, model, 0.5, kind="parameter")]) is None
