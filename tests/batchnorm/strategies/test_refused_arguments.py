"""Strategies refuse what they cannot give, before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis.errors import InvalidArgument

from pytest_bninvariants.batchnorm.strategies import (
    batch_sizes,
    bn_cases,
    bn_inputs,
    devices,
    dtypes,
    epsilons,
    memory_formats,
    momenta,
)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: batch_sizes(-1), "min_size must be a whole number >= 0, not -1 (int)"),
        (lambda: batch_sizes(1.5), "min_size must be a whole number >= 0, not 1.5 (float)"),  # type: ignore[arg-type]
        (lambda: batch_sizes(True), "min_size must be a whole number >= 0, not True (bool)"),
        (lambda: batch_sizes(1, "9"), "max_size must be a whole number >= 0, not '9' (str)"),  # type: ignore[arg-type]
        (lambda: batch_sizes(5, 4), "max_size=4 is below min_size=5"),
        (lambda: epsilons(-1e-5), "min_value must be a number from 0 to 1, not -1e-05 (float)"),
        (lambda: epsilons(2), "min_value must be a number from 0 to 1, not 2 (int)"),
        (lambda: epsilons(math.nan), "min_value must be a number from 0 to 1, not nan (float)"),
        (lambda: epsilons("1e-5"), "min_value must be a number from 0 to 1, not '1e-5' (str)"),  # type: ignore[arg-type]
        (lambda: dtypes("int8"), "not 'int8' (str)"),
        (lambda: dtypes("float32", "half"), "not 'half' (str)"),
        (lambda: memory_formats(6), "dims must be one of 2, 3, 4, 5, not 6 (int)"),
        (lambda: memory_formats(4, ["nchw"]), "not 'nchw' (str)"),
        (
            lambda: memory_formats(4, "offset"),
            "layouts must be a non-empty list, not 'offset'",
        ),
        (lambda: memory_formats(4, []), "layouts must be a non-empty list, not [] (list)"),
        (lambda: memory_formats(2, ["channels_last"]), "only channels_last, which dims=2 cannot"),
        (lambda: epsilons(True), "min_value must be a number from 0 to 1, not True (bool)"),
        (lambda: momenta(none=None), "none must be True or False, not None (NoneType)"),  # type: ignore[arg-type]
        (lambda: dtypes(torch.float32), "not torch.float32 (dtype)"),  # type: ignore[arg-type]
        (lambda: devices("tpu"), "tpu"),
        (lambda: devices(0), "a device must be one of cpu, auto "),  # type: ignore[arg-type]
    ],
)
def test_a_bad_argument_is_named(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert said in str(caught.value)


DEVICE = "device must be the name of a torch device, such as cpu or cuda:1, not "
BAD_OF_BOTH = [
    (
        {"dtype": "int8"},
        "dtype must be one of float64, float32, bfloat16, float16, not 'int8' (str)",
    ),
    ({"dtype": torch.float32}, "not torch.float32 (dtype)"),
    ({"min_values": -200}, "min_values must be a whole number >= 0, not -200 (int)"),
    ({"min_values": 2.0}, "min_values must be a whole number >= 0, not 2.0 (float)"),
    ({"max_values": "9"}, "max_values must be a whole number >= 0, not '9' (str)"),
    ({"max_values": True}, "max_values must be a whole number >= 0, not True (bool)"),
    ({"max_values": 1}, "max_values=1 is below 2, which min_values=2 needs"),
    ({"min_values": 4097}, "max_values=4096 is below 4097, which min_values=4097 needs"),
    (
        {"layouts": ("nchw",)},
        "layout must be one of contiguous, channels_last, transposed, swapped, ",
    ),
    ({"layouts": ("nchw",)}, "not 'nchw' (str)"),
    ({"layouts": "contiguous"}, "layouts must be a non-empty list, not 'contiguous' (str)"),
    ({"layouts": ()}, "layouts must be a non-empty list, not () (tuple)"),
    ({"layouts": None}, "layouts must be a non-empty list, not None (NoneType)"),
]
BAD_INPUTS = [
    *BAD_OF_BOTH,
    ({"dims": 1}, "dims must be one of 2, 3, 4, 5, not 1 (int)"),
    ({"dims": 4.0}, "dims must be one of 2, 3, 4, 5, not 4.0 (float)"),
    ({"dims": (4,)}, "dims must be one of 2, 3, 4, 5, not (4,) (tuple)"),
    ({"channels": 0}, "channels must be a whole number >= 1, not 0 (int)"),
    ({"channels": 3.0}, "channels must be a whole number >= 1, not 3.0 (float)"),
    (
        {"channels": 2, "max_values": 3},
        "max_values=3 is below 4, which min_values=2 in each of 2 channels needs",
    ),
    ({"eps": -1e-5}, "eps must be a number from 0 to 1, not -1e-05 (float)"),
    ({"eps": math.inf}, "eps must be a number from 0 to 1, not inf (float)"),
    ({"eps": True}, "eps must be a number from 0 to 1, not True (bool)"),
    ({"eps": "1e-5"}, "eps must be a number from 0 to 1, not '1e-5' (str)"),
    (
        {"dims": 3, "layouts": ["channels_last"]},
        "layouts has only channels_last, which dims=3 cannot have",
    ),
]
BAD_CASES = [
    *BAD_OF_BOTH,
    ({"dims": (7,)}, "dims must be one of 2, 3, 4, 5, not 7 (int)"),
    ({"dims": ()}, "dims must be a non-empty list, not () (tuple)"),
    ({"dims": 4}, "dims must be a non-empty list, not 4 (int)"),
    (
        {"state_dtype": "half"},
        "state_dtype must be one of float64, float32, bfloat16, float16, not ",
    ),
    ({"device": "abacus"}, f"{DEVICE}'abacus' (str)"),
    ({"device": 0}, f"{DEVICE}0 (int)"),
    ({"device": ""}, f"{DEVICE}'' (str)"),
    ({"modes": ()}, "modes must be a non-empty list, not () (tuple)"),
    ({"modes": True}, "modes must be a non-empty list, not True (bool)"),
    ({"modes": (True, 0)}, "a mode must be True or False, not 0 (int)"),
    ({"modes": ("train",)}, "a mode must be True or False, not 'train' (str)"),
    ({"momentum": 0.1}, "momentum must be True or False, not 0.1 (float)"),
    ({"min_samples": -1}, "min_samples must be a whole number >= 0, not -1 (int)"),
    ({"min_samples": 5000}, "min_samples=5000 is above max_values=4096"),
    ({"momentum": None}, "momentum must be True or False, not None (NoneType)"),
    ({"average": 1}, "average must be True or False, not 1 (int)"),
    ({"affine": "yes"}, "affine must be True, False or None, not 'yes' (str)"),
    ({"tracking": 0}, "tracking must be True, False or None, not 0 (int)"),
    (
        {"dims": (4, 2), "layouts": ("channels_last",)},
        "layouts has only channels_last, which dims=2 cannot have",
    ),
]


@pytest.mark.parametrize(
    ("strategy", "given_", "said"),
    [
        *((bn_inputs, *each) for each in BAD_INPUTS),
        *((bn_cases, *each) for each in BAD_CASES),
    ],
)
def test_a_bad_argument_of_a_batch_or_a_case_is_named_before_anything_is_drawn(
    strategy: Callable[..., object], given_: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        strategy(**given_)
    assert said in str(caught.value)
