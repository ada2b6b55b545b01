"""What the result for one parameter says, by each thing that it depends on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.invariants.trains.results import result

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("record", "options", "is_negligible"),
    [
        ({}, {}, True),
        ({}, {"dtype": torch.float64}, True),
        ({}, {"dtype": torch.bfloat16}, False),
        ({}, {"requires_grad": False}, False),
        ({}, {"moved": True}, False),
        ({"moved": True}, {}, False),
        ({"rate": 0.0}, {}, False),
        ({"gradient": "zero"}, {}, False),
        ({"gradient": "none"}, {}, False),
        ({"size": float("inf")}, {}, False),
    ],
)
def test_a_step_is_negligible_that_full_precision_rounded_away(
    record: dict[str, Any], options: dict[str, Any], is_negligible: bool
) -> None:
    assert result(record, **options).is_negligible == is_negligible


@pytest.mark.parametrize("largest", [1.0, 100.0])
@pytest.mark.parametrize(("share", "was_left"), [(0.9, False), (1.1, True)])
def test_a_step_that_the_dtype_would_show_was_left_out(
    largest: float, share: float, was_left: bool
) -> None:
    start = torch.tensor([largest, -1e-3]).double()
    for record in (
        {"rate": EPS * largest * share, "size": 1.0},
        {"rate": EPS * largest * share, "size": 1e6},
        {"rate": 1.0, "size": EPS * largest * share},
    ):
        assert result({"start": start, **record}).was_left == was_left
        assert result({"start": -start, **record}).was_left == was_left


def test_a_large_gradient_makes_no_larger_step_than_one_of_1() -> None:
    assert not result({"rate": 1e-12, "size": 1e6}).was_left
    assert result({"rate": 1e-6, "size": 1e6}).was_left


@pytest.mark.parametrize(
    "record", [{"start": None}, {"start": torch.ones(0).double()}, {"gradient": "zero"}]
)
def test_what_is_not_known_was_not_left(record: dict[str, Any]) -> None:
    assert not result(record).was_left


@pytest.mark.parametrize(
    ("name", "values", "left_zero"),
    [
        ("w", [0.0, 0.0], True),
        ("w", [0.0, 1.0], False),
        ("w", [1.0, 1.0], False),
        ("layer.bias", [0.0, 0.0], False),
    ],
)
def test_only_a_factor_that_was_all_zeros_stands_between_others_and_a_gradient(
    name: str, values: list[float], left_zero: bool
) -> None:
    record = {"start": torch.tensor(values).double(), "moved": True}
    assert result(record, name=name, moved=True).left_zero == left_zero
    assert not result(record, name=name, moved=False).left_zero


@pytest.mark.parametrize(
    ("record", "options", "trained"),
    [
        ({"moved": True}, {}, True),
        ({"moved": True}, {"moved": False}, False),
        ({"moved": True, "gradient": "zero"}, {}, False),
        ({"moved": True, "gradient": "zero", "optimizer": ""}, {}, True),
        ({"moved": True, "loaded": True}, {}, False),
        ({"moved": True}, {"shrank": True}, False),
        ({"moved": True}, {"overwritten": True}, False),
        ({"moved": True}, {"not_finite": 1}, False),
        ({}, {}, False),
        ({"may_have_moved": True}, {}, True),
        ({}, {"may_have_missed": True}, True),
        ({}, {"may_have_missed": True, "replaced": True}, False),
        ({}, {"requires_grad": False}, True),
    ],
)
def test_a_parameter_trained_if_steps_moved_it_by_more_than_decay(
    record: dict[str, Any], options: dict[str, Any], trained: bool
) -> None:
    assert result(record, **{"moved": True, **options}).trained == trained


SGD = "SGD (group 2) stepped with lr 0.1 and"


@pytest.mark.parametrize(
    ("record", "options", "text"),
    [
        ({}, {"gone": "deleted", "not_finite": 1}, "is no parameter now"),
        ({}, {"not_finite": 2, "overwritten": True}, "2 of its values became NaN or infinite"),
        ({"loaded": True}, {"moved": True}, "got its values from a state_dict"),
        ({"loaded": True}, {}, f"did not move; {SGD} a gradient of up to 1.0e-03"),
        ({"moved": True}, {"overwritten": True}, "was written over after SGD stepped"),
        ({}, {"requires_grad": False}, "did not move; requires_grad is False"),
        ({"optimizer": ""}, {}, "did not move; no optimizer that holds it stepped"),
        ({"gradient": "none"}, {}, f"did not move; {SGD} no gradient"),
        ({"gradient": "zero"}, {}, f"did not move; {SGD} a gradient of zeros"),
        ({"size": float("inf")}, {}, f"did not move; {SGD} a gradient that is not finite"),
        ({}, {"moved": True}, f"moved outside of any step; {SGD} a gradient of up to 1.0e-03"),
        (
            {"moved": True, "gradient": "zero"},
            {"moved": True},
            f"moved by decay or moments alone; {SGD} a gradient of zeros",
        ),
        (
            {"optimizer": ""},
            {"moved": True, "replaced": True},
            "is another tensor now; no optimizer that holds it stepped",
        ),
    ],
)
def test_the_text_tells_how_a_parameter_failed_to_train(
    record: dict[str, Any], options: dict[str, Any], text: str
) -> None:
    found = result({"group": 2, **record}, **options)
    assert found.text == text
    assert found.group == (found.record.optimizer, 2)


def test_the_hazard_tells_the_gradient_that_was_rounded_away() -> None:
    assert result().hazard.startswith("did not move: a gradient of up to 1.0e-03 was rounded away")
