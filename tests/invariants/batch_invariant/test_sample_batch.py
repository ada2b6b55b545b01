"""A batch of samples is read from what a user passes, cut, and put into words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.invariants.batch_invariant.sample_batch import SampleBatch, in_words

X = torch.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [
        (X, 1, []),
        ((X, {"y": X}), 2, []),
        ([X, X], 1, []),
        ({"x": X, "n": 3}, 0, ["x", "n"]),
    ],
)
def test_inputs_are_positional_or_by_name(inputs: Any, args: int, kwargs: list[str]) -> None:
    batch = SampleBatch.read(inputs)
    assert batch.size == 3
    assert (len(batch.arguments.args), list(batch.arguments.kwargs)) == (args, kwargs)


def test_a_part_has_its_samples_in_their_order() -> None:
    part = SampleBatch.read((X, {"y": X + 1})).part((2, 0))
    assert torch.equal(part.args[0], X[[2, 0]])
    assert torch.equal(part.args[1]["y"], X[[2, 0]] + 1)


def test_a_batch_is_a_copy() -> None:
    mine = X.clone()
    batch = SampleBatch.read(mine)
    mine.zero_()
    assert torch.equal(batch.arguments.args[0], X)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.tensor(1.0), r"samples in dimension 0; got inputs\[0\] \(\)"),
        ((X, torch.tensor(1.0)), r"got inputs\[0\] \(3, 2\), inputs\[1\] \(\)"),
        ({"x": X, "y": X[:2]}, r"got inputs\['x'\] \(3, 2\), inputs\['y'\] \(2, 2\)"),
        (X[:0], r"got inputs\[0\] \(0, 2\)"),
        (X[:1], "one sample has no batch mates"),
        ((X[:1].expand(3, 2), torch.ones(3)), "all 3 samples are equal"),
    ],
)
def test_what_is_no_batch_is_refused(inputs: Any, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        SampleBatch.read(inputs)


def test_one_input_that_differs_makes_the_samples_differ() -> None:
    assert SampleBatch.read((torch.ones(3, 2), X)).size == 3
    assert SampleBatch.read(torch.tensor([1.0, 1.0, 2.0])).size == 3


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ((3,), "sample 3 alone"),
        ((5, 4, 3, 2, 1, 0), "the batch of 6 in reverse"),
        ((4, 3, 2, 1, 0), "a batch of 5 (samples 4, 3, 2, 1, ...)"),
        ((1, 0, 2, 3), "a batch of 4 (samples 1, 0, 2, 3)"),
        ((1, 0), "a batch of 2 (samples 1, 0)"),
    ],
)
def test_a_batch_in_words(order: tuple[int, ...], words: str) -> None:
    assert in_words(order, 6) == words
