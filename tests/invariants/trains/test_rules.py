"""Each reason why a parameter did not train, by the first thing that tells it from the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_bninvariants.invariants.trains.rules import diagnose
from pytest_bninvariants.verdict import Cause, Place
from tests.invariants.trains.results import result

INF = float("inf")
EMPTY: dict[str, Any] = {}
PLACE = Place(file="train.py", line=3, function="resume", call="load_state_dict")


def only(*results: Any) -> Cause:
    (cause,) = diagnose(list(results))
    return cause


@pytest.mark.parametrize(
    ("record", "options", "name", "why"),
    [
        (
            EMPTY,
            {"gone": "it was deleted", "not_finite": 1},
            "replaced",
            "w is no parameter of the model now: it was deleted",
        ),
        (EMPTY, {"not_finite": 1, "moved": True}, "not-finite", "w became NaN or infinite, and st"),
        ({"size": INF}, EMPTY, "not-finite", "w had a gradient that is not finite, and did not"),
        ({"size": INF, "loaded": True}, {"moved": True}, "loaded", "w got its values from a state"),
        ({"loaded": True, "rate": 0.0}, EMPTY, "learning-rate-0", "w had a gradient, and a lear"),
        ({"moved": True}, {"moved": True, "overwritten": True}, "in-place", "w has nothing of"),
        ({"moved": True}, {"overwritten": True}, "undone", "w moved in a step of SGD, and has its"),
        (EMPTY, {"requires_grad": False, "twins": ["a"]}, "tied", "w is the same tensor as a, so"),
        (EMPTY, {"requires_grad": False}, "requires-grad-off", "w has requires_grad=False"),
        (EMPTY, {"twins": ["a"]}, "skipped", "w had a gradient and a learning rate of 0.1 when SG"),
        (EMPTY, {"moved": True}, "in-place", "w moved outside of any optimizer's step, and not"),
        ({"optimizer": ""}, {"stepped": []}, "not-in-optimizer", "w got no step: no optimizer st"),
        (
            {"optimizer": ""},
            {"replaced": True},
            "not-in-optimizer",
            "w is another tensor than at the start of the block, and is in no optimizer that "
            "stepped (SGD did)",
        ),
        ({"optimizer": ""}, EMPTY, "not-in-optimizer", "w is in no optimizer that stepped (SGD d"),
        (
            {"optimizer": "", "moved": True},
            {"replaced": True},
            "not-in-optimizer",
            "w is in no optimizer that stepped (SGD did)",
        ),
        (
            {"gradient": "none", "cleared": True, "checkpointed": True},
            EMPTY,
            "no-gradient",
            "w had a gradient after backward(), and none when SGD stepped",
        ),
        (
            {"gradient": "zero", "cleared": True},
            {"zeros": ["a"]},
            "zero-gradient",
            "w had a gradient after backward(), and zeros when SGD stepped",
        ),
        ({"cleared": True, "rate": 0.0}, EMPTY, "learning-rate-0", "w had a gradient, and a lea"),
        (
            {"gradient": "none", "checkpointed": True},
            EMPTY,
            "no-gradient",
            "w had no gradient when SGD stepped: its forward ran in a reentrant checkpoint",
        ),
        ({"gradient": "none"}, EMPTY, "no-gradient", "w had no gradient when SGD stepped: no los"),
        (
            {"gradient": "zero"},
            {"zeros": ["a", "b"]},
            "zero-gradient",
            "w had a gradient of zeros when SGD stepped; a and b were all zeros until then",
        ),
        ({"gradient": "zero"}, EMPTY, "zero-gradient", "w had a gradient of zeros when SGD step"),
        ({"rate": 0.0}, {"zeros": ["a"]}, "learning-rate-0", "w had a gradient, and a learning "),
        (
            {"rate": 1e-9},
            EMPTY,
            "rounded-away",
            "w had a gradient of up to 1.0e-03 and a learning rate of 1e-09: in float32 such a",
        ),
    ],
)
def test_the_first_reason_that_applies_is_told(
    record: dict[str, Any], options: dict[str, Any], name: str, why: str
) -> None:
    cause = only(result(record, **options))
    assert cause.name == name
    assert cause.layers == ("w",)
    assert cause.why.startswith(why)


def test_parameters_of_one_reason_share_a_cause_in_the_plural() -> None:
    tied: dict[str, Any] = {"requires_grad": False, "twins": ["a"]}
    assert (
        "v and w are the same tensors as a, so"
        in only(result(name="v", **tied), result(**tied)).why
    )
    off: dict[str, Any] = {"requires_grad": False}
    cause = only(result(name="v", **off), result(**off))
    assert cause.why == "v and w have requires_grad=False"
    assert cause.fix.startswith("call requires_grad_(True) on v and w, or")


def test_the_largest_gradient_and_rate_of_those_rounded_away_are_told() -> None:
    small = result({"rate": 1e-14, "size": 1e-4}, name="v", dtype=torch.float64)
    cause = only(small, result({"rate": 1e-8}))
    assert (
        "had a gradient of up to 1.0e-03 and a learning rate of up to 1e-08: in float64 and "
        in (cause.why)
    )
    assert "float32 such a step is too small to change their values" in cause.why


def test_the_largest_rate_of_those_that_were_left_is_told() -> None:
    cause = only(result({"rate": 0.2}, name="v"), result())
    assert (
        "a learning rate of up to 0.2 when SGD stepped, which left them as they were" in cause.why
    )
    assert "a learning rate of 0.1 when SGD stepped, which left it as it was" in only(result()).why


def test_a_load_is_told_with_its_place() -> None:
    cause = only(result({"loaded": True, "loaded_at": PLACE}, moved=True))
    assert PLACE.file in str(cause)
    assert "loaded by" in str(cause)
