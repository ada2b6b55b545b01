"""Check many updates at once: most of them are right, and take a few operators together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import UNIT, Arithmetic, gamma
from pytest_bninvariants.batchnorm.batch_summary import BatchSums, moments_of, variance_error
from pytest_bninvariants.batchnorm.tolerance import mixing_error
from pytest_bninvariants.invariants.bn_updates.layer_forward import EndedForward
from pytest_bninvariants.invariants.bn_updates.reference_check import weight_of
from pytest_bninvariants.invariants.bn_updates.statistics_snapshot import StatisticsSnapshot
from pytest_bninvariants.selection.bn_layers import STATISTICS

_FLOAT32 = torch.float32
_UNIT = UNIT[_FLOAT32]
_ARITHMETIC = Arithmetic.for_dtypes(_FLOAT32, _FLOAT32)


def find_surely_right(forwards: Sequence[EndedForward]) -> set[int]:
    """Return the ids of forwards that moved statistics to what they must be.

    Each is within less than `expected_statistics` allows. This looks at float32 statistics that a
    batch of the host updated; the others are to be checked one by one.

    Args:
        forwards: the forwards, read on the host.
    """
    plain = [each for each in forwards if _is_plain(each)]
    sums = [each.batch for each in plain if isinstance(each.batch, BatchSums)]
    if not plain:
        return set()
    sizes = torch.tensor([each.channels for each in sums], device="cpu")
    numbers = [_numbers(each, batch) for each, batch in zip(plain, sums, strict=True)]
    table = torch.tensor(numbers, dtype=torch.float64, device="cpu").T
    n, weight, sum_error = table.repeat_interleave(sizes, 1)
    total, shift, squares = map(torch.cat, zip(*map(_vectors, sums), strict=True))
    mean, var, magnitude = moments_of(total, shift, squares, n)
    var *= n / (n - 1)
    of_batch = torch.stack([sum_error * magnitude, sum_error * var + variance_error(var, _UNIT)])
    expected = torch.lerp(
        _floats([each.before for each in plain]), torch.stack([mean, var]), weight
    )
    bound = mixing_error(_ARITHMETIC) * expected.abs() + weight.abs() * of_batch
    off = (_floats([each.after for each in plain]) - expected).abs()
    right = torch.split((off <= bound).all(0), sizes.tolist())
    return {id(each) for each, channels in zip(plain, right, strict=True) if channels.all()}


def _is_plain(forward: EndedForward) -> bool:
    """Tell whether float32 statistics moved by a batch of the host, with a known weight."""
    batch, moved = forward.batch, forward.moved
    return (
        isinstance(batch, BatchSums)
        and weight_of(forward) is not None
        and all(_has_floats(forward.before, name, batch.channels) for name in STATISTICS)
        and all(_has_floats(forward.after, name, batch.channels) for name in STATISTICS)
        and not moved.isdisjoint(STATISTICS)
    )


def _has_floats(state: StatisticsSnapshot, name: str, channels: int) -> bool:
    content = state.contents.get(name)
    is_float = content is not None and state.tensors[name].dtype is _FLOAT32
    return is_float and content is not None and len(content) == channels * _FLOAT32.itemsize


def _numbers(forward: EndedForward, batch: BatchSums) -> tuple[float, float | None, float]:
    """Return how many values a channel has, the batch's weight, and the error of a layer's sums."""
    return batch.values, weight_of(forward), gamma(batch.depth, _UNIT)


def _vectors(batch: BatchSums) -> tuple[Tensor, Tensor, Tensor]:
    return batch.total, batch.shift, batch.squares


def _floats(states: Sequence[StatisticsSnapshot]) -> Tensor:
    """Return the statistics of all layers, shape (2, sum of C), float64."""
    contents = [state.contents[name] or b"" for name in STATISTICS for state in states]
    values = torch.frombuffer(bytearray().join(contents), dtype=_FLOAT32)
    return values.view(2, -1).to(torch.float64)
