"""Batches for users' steps: what was asked for, early refusals, and the plain one in the end."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis.errors import InvalidArgument
from torch import Tensor

from pytest_bninvariants import TrainBatch, run_config, train_batches
from pytest_bninvariants.option_values import DTYPES

calm = settings(database=None, derandomize=True, deadline=None, max_examples=60)


def drawn(strategy: Any) -> list[TrainBatch]:
    batches: list[TrainBatch] = []

    @calm
    @given(strategy)
    def collect(batch: TrainBatch) -> None:
        batches.append(batch)

    collect()
    return batches


def test_inputs_and_classes_are_as_asked_for() -> None:
    for inputs, targets in drawn(train_batches((3, 4, 5), classes=7)):
        assert 1 <= len(inputs) <= 32
        assert inputs.shape[1:] == (3, 4, 5)
        assert inputs.dtype == torch.float32
        assert targets.shape == inputs.shape[:1]
        assert targets.dtype == torch.int64
        assert 0 <= targets.min() <= targets.max() < 7


@pytest.mark.parametrize("size", [1, 2, 3, 17, 32])
def test_each_batch_size_is_drawn(size: int) -> None:
    found = find(train_batches((3,), classes=7), lambda batch: len(batch.inputs) == size)
    assert len(found.targets) == size


def test_targets_may_be_floats_or_a_class_for_each_position() -> None:
    for batch in drawn(train_batches((2,), target_shape=(1,), dtypes=["float64", "bfloat16"])):
        assert batch.targets.shape == (len(batch.inputs), 1)
        assert batch.targets.dtype == batch.inputs.dtype
    for batch in drawn(train_batches((2, 3, 3), classes=2, target_shape=(3, 3))):
        assert batch.targets.shape == (len(batch.inputs), 3, 3)
        assert batch.targets.dtype == torch.int64
    assert drawn(train_batches((2,), target_shape=()))[0].targets.dim() == 1


def test_batch_sizes_dtypes_and_devices_are_those_given() -> None:
    strategy = train_batches(
        [2], classes=2, batch_sizes=[9, 4], dtypes=DTYPES, devices=["cpu", "auto"]
    )
    batches = drawn(strategy)
    assert {len(batch.inputs) for batch in batches} == {4, 9}
    assert {batch.inputs.dtype for batch in batches} == {getattr(torch, name) for name in DTYPES}


def test_devices_are_by_default_those_of_the_run() -> None:
    strategy = train_batches((2,), classes=2)
    assert {batch.inputs.device.type for batch in drawn(strategy)} == {"cpu"}
    with run_config.override(devices=("cpu", "meta")):
        for kind in ("cpu", "meta"):
            batch = find(strategy, lambda batch, kind=kind: batch.inputs.device.type == kind)  # type: ignore[misc]
            assert batch.targets.device.type == kind


@pytest.mark.parametrize("least", [1, 2, 5, 31])
def test_the_smallest_batch_is_the_plain_one(least: int) -> None:
    strategy = train_batches(
        (3,), classes=4, batch_sizes=range(32, 0, -1), dtypes=["float32", "float16"]
    )
    found = find(strategy, lambda batch: len(batch.inputs) >= least, settings=calm)
    assert repr(found) == f"TrainBatch.of(({least}, 3), classes=4, seed=0)"


@pytest.mark.parametrize(
    "made",
    [
        TrainBatch.of((2, 3), classes=5),
        TrainBatch.of((2, 3), seed=9, dtype="float64"),
        TrainBatch.of((2, 3), classes=5, target_shape=(4,), dtype="bfloat16", device="meta"),
    ],
)
def test_the_repr_makes_the_same_batch(made: TrainBatch) -> None:
    again = eval(repr(made), {"TrainBatch": TrainBatch})
    assert repr(again) == repr(made)
    for one, other in zip(made, again, strict=True):
        assert one.device.type == "meta" or torch.equal(one, other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)


def test_a_batch_survives_what_libraries_do_to_named_tuples() -> None:
    batch = TrainBatch.of((2, 3), classes=5)
    moved = type(batch)(*(tensor.to("cpu") for tensor in batch))
    assert isinstance(moved, TrainBatch)
    assert "tensor(" in repr(moved)
    for copied in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(copied.inputs, batch.inputs)
        assert repr(copied) == repr(batch)


def test_drawing_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    TrainBatch.of((2, 3), classes=5)
    assert torch.equal(torch.get_rng_state(), before)


def same_values(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other.to(one.dtype))


def test_the_values_are_the_seeds_in_every_dtype() -> None:
    exact = TrainBatch.of((4, 3), seed=3, dtype="float64")
    for name in DTYPES:
        rounded = TrainBatch.of((4, 3), seed=3, dtype=name)
        assert same_values(rounded.inputs, exact.inputs)
        assert same_values(rounded.targets, exact.targets)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"shape": 3}, r"shape must be the shape of one sample, such as \(3, 32, 32\), not 3 \(int\)"),
    ({"shape": "3"}, r"shape must be the shape of one sample, .* not '3' \(str\)"),
    ({"shape": (3, 0)}, r"each of shape must be a whole number >= 1, not 0 \(int\)"),
    ({"shape": (3, 2.0)}, r"each of shape must be a whole number >= 1, not 2.0 \(float\)"),
    ({"classes": 0}, r"classes must be a whole number >= 1, not 0 \(int\)"),
    (
        {"classes": None},
        r"give classes=, such as 10, .* or target_shape=, such as \(1,\), for floats",
    ),
    ({"target_shape": (0,)}, r"each of target_shape must be a whole number >= 1, not 0 \(int\)"),
    ({"batch_sizes": 4}, r"batch_sizes must be a non-empty list, not 4 \(int\)"),
    ({"batch_sizes": []}, r"batch_sizes must be a non-empty list, not \[\] \(list\)"),
    ({"batch_sizes": [4, 0]}, r"a batch size must be a whole number >= 1, not 0 \(int\)"),
    ({"dtypes": ["int8"]}, r"dtype must be one of float64, .* not 'int8' \(str\)"),
    ({"dtypes": "float32"}, r"dtypes must be a non-empty list, not 'float32' \(str\)"),
    ({"devices": ["tpu"]}, r"devices=tpu: there is no such device; accepted: cpu, auto"),
    ({"devices": "cpu"}, r"devices must be a non-empty list, not 'cpu' \(str\)"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_what_cannot_be_is_refused_at_once(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        train_batches(**{"shape": (3, 4), "classes": 2, **wrong})
