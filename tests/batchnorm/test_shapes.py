"""Sizes and shapes are those within the limits, small ones first."""

from __future__ import annotations

import math

import pytest

from pytest_bninvariants.batchnorm.shapes import BatchLimits, sizes_between


@pytest.mark.parametrize(
    ("least", "most", "sizes"),
    [
        (1, 3, (1, 2, 3)),
        (0, 0, (0,)),
        (5, 5, (5,)),
        (64, 130, (64, 65, 66, 127, 128, 129)),
        (67, 127, (67, 127)),
        (100, 128, (100, 127, 128)),
        (1025, 1025, (1025,)),
        (1025, 5000, (1025, 4097)),
        (1026, 4096, (1026,)),
    ],
)
def test_sizes_are_each_small_one_and_those_around_powers_of_two(
    least: int, most: int, sizes: tuple[int, ...]
) -> None:
    assert sizes_between(least, most) == sizes


def test_every_small_size_is_among_them_once() -> None:
    sizes = sizes_between(1, 1025)
    assert sizes[:66] == tuple(range(1, 67))
    assert len(set(sizes)) == len(sizes)
    assert {2**k + d for k in (7, 8, 9, 10) for d in (-1, 0, 1)} <= set(sizes)


@pytest.mark.parametrize(
    ("limits", "channels"),
    [
        (BatchLimits(2, 8), (1, 2, 3, 4)),
        (BatchLimits(2, 7), (1, 2, 3)),
        (BatchLimits(2, 12, min_samples=4), (1, 2, 3)),
        (BatchLimits(4, 12, min_samples=2), (1, 2, 3)),
        (BatchLimits(0, 4), (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 65)),
    ],
)
def test_channels_leave_room_for_the_fewest_values(
    limits: BatchLimits, channels: tuple[int, ...]
) -> None:
    assert limits.channels() == channels


@pytest.mark.parametrize(
    ("limits", "channels", "positions", "samples"),
    [
        (BatchLimits(2, 8), 1, 1, (2, 3, 4, 5, 6, 7, 8)),
        (BatchLimits(2, 8), 2, 1, (2, 3, 4)),
        (BatchLimits(2, 8), 2, 2, (1, 2)),
        (BatchLimits(3, 8), 1, 2, (2, 3, 4)),
        (BatchLimits(3, 8), 2, 2, (2,)),
        (BatchLimits(3, 7), 2, 2, ()),
        (BatchLimits(1, 8, min_samples=3), 1, 2, (3, 4)),
        (BatchLimits(0, 1), 1, 1, (0, 1)),
    ],
)
def test_samples_are_within_the_limits(
    limits: BatchLimits, channels: int, positions: int, samples: tuple[int, ...]
) -> None:
    assert limits.samples(channels, positions) == samples


def test_samples_end_at_the_most_or_begin_with_the_fewest() -> None:
    assert BatchLimits(1, 10**6).samples(1, 1)[-1] == 1025
    assert BatchLimits(2000, 10**6).samples(1, 1) == (2000,)


@pytest.mark.parametrize("dims", [2, 3, 4, 5])
def test_positions_are_those_that_leave_room_for_a_sample(dims: int) -> None:
    few = BatchLimits(2, 8).positions(dims, 2)
    assert few
    assert all(len(each) == dims - 2 and math.prod(each) <= 4 for each in few)
    assert set(few) < set(BatchLimits(2, 4096).positions(dims, 2)) or dims == 2
    assert BatchLimits(2, 1).positions(dims, 1) == ()
