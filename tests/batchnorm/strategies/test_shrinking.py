"""Strategies shrink to the plain case."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import find, settings

from pytest_bninvariants.batchnorm.cases import Batch, Case
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
from tests.batchnorm.strategies.drawing import anything, calm, smallest


def test_settings_shrink_to_torchs_defaults() -> None:
    assert smallest(momenta(), anything) == 0.1
    assert smallest(epsilons(), anything) == 1e-5
    assert smallest(batch_sizes(), lambda n: n > 20) == 21
    assert smallest(batch_sizes(), lambda n: n > 200) == 255
    assert smallest(dtypes(), anything) == "float32"
    assert smallest(devices(), anything) == "cpu"
    assert smallest(memory_formats(), anything) == "contiguous"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dims", [2, 3, 4, 5])
@pytest.mark.parametrize("channels", [None, 65])
def test_inputs_shrink_to_two_plain_values(dims: int, channels: int | None, seed: int) -> None:
    strategy = bn_inputs(dims=dims, channels=channels)
    settings_ = settings(calm, max_examples=100, derandomize=False)
    found = find(strategy, anything, settings=settings_, random=Random(seed))
    assert found == Batch(shape=(2, channels or 1, *[1] * (dims - 2)))


def test_cases_shrink_to_a_new_layer_and_one_plain_batch() -> None:
    found = smallest(bn_cases(), anything)
    assert found == Case(batches=(Batch(shape=(2, 1)),), affine=False)


def test_a_case_shrinks_to_what_its_failure_needs() -> None:
    found = smallest(bn_cases(dims=(4,)), lambda case: case.channels >= 3 and case.affine)
    assert found == Case(batches=(Batch(shape=(2, 3, 1, 1)),))
    found = smallest(bn_cases(modes=None), lambda case: not all(case.modes))
    assert found.modes == (False,)
    assert found.batches == (Batch(shape=(2, 1)),)
    found = smallest(bn_inputs(), lambda batch: batch.kappa >= 100 and batch.shape[0] >= 20)
    assert found == Batch(shape=(20, 1, 1, 1), kappa=100.0)
    found = smallest(bn_cases(dims=(4,)), lambda case: case.batches[0].layout == "strided")
    assert found.batches == (Batch(shape=(2, 1, 1, 1), layout="strided"),)
