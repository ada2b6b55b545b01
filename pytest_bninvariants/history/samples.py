"""Make a history of samples of running statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.drift import statistics_drift
from pytest_bninvariants.drift_history import Band, ChannelHistory, LayerHistory
from pytest_bninvariants.snapshot.tensor_bytes import as_bytes, same_bytes

MOST_SAMPLES = 257
_CURVE_POINTS = 129
_CHANNELS, _CHANNEL_POINTS = 8, 65


class LayerStatistics(NamedTuple):
    """The running statistics of one layer at one moment, each of shape (C,)."""

    mean: Tensor
    var: Tensor


Sample = Mapping[str, LayerStatistics]
"""The statistics of each layer, by its name, at one moment."""


def layer_histories(
    samples: Sequence[Sample],
    eps: Mapping[str, float],
    *,
    default_eps: float = 1e-5,
    points: int = _CURVE_POINTS,
) -> tuple[LayerHistory, ...]:
    """Return the history of each layer that all samples have, with one number of channels.

    Args:
        samples: the samples, in the order in which they were taken; at least one.
        eps: what each layer adds to its variance.
        default_eps: the same for a layer that `eps` does not have.
        points: at how many samples, evenly spread, curves are kept.
    """
    histories = []
    for name, first in samples[0].items():
        taken = [sample[name] for sample in samples if name in sample]
        shapes = {each.shape for pair in taken for each in pair}
        if len(taken) == len(samples) and shapes == {first.mean.shape} and first.mean.numel():
            histories.append(_history(name, taken, eps.get(name, default_eps), points))
    return tuple(histories)


def spread_out(count: int, most: int) -> list[int]:
    """Return the numbers of at most so many of these samples, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _history(name: str, taken: list[LayerStatistics], eps: float, points: int) -> LayerHistory:
    drifts = tuple(_drift(old, new, eps) for old, new in pairwise(taken))
    means = torch.stack([each.mean.detach().cpu().double().flatten() for each in taken])
    variances = torch.stack([each.var.detach().cpu().double().flatten() for each in taken])
    shown = spread_out(len(taken), points)
    moved = any(drift is not None for drift in drifts)
    return LayerHistory(
        name=name,
        drifts=drifts,
        mean=_band(means[shown]),
        var=_band(variances[shown]),
        channels=_channels(means, variances) if moved else (),
        count=means.shape[1],
    )


def same_statistics(one: Sample, other: Sample) -> bool:
    """Tell whether two samples have the same layers, with the same bytes."""
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)


def _drift(old: LayerStatistics, new: LayerStatistics, eps: float) -> float | None:
    return None if _same(old, new) else statistics_drift(*old, *new, eps=eps)


def _same(old: LayerStatistics, new: LayerStatistics) -> bool:
    return all(
        one.dtype == other.dtype and same_bytes(as_bytes(one.detach()), as_bytes(other.detach()))
        for one, other in zip(old, new, strict=True)
    )


def _band(values: Tensor) -> Band:
    return Band(
        low=_rounded(values.amin(1)), middle=_rounded(values.mean(1)), high=_rounded(values.amax(1))
    )


def _channels(means: Tensor, variances: Tensor) -> tuple[ChannelHistory, ...]:
    """Return the channels whose mean, in standard deviations, or variance moved most."""
    scale = variances[0].clamp(min=1e-12)
    shift = (means - means[0]).square().amax(0) / scale
    spread = ((variances - variances[0]).abs() / scale).amax(0)
    most = (shift + spread).nan_to_num(nan=torch.inf).topk(min(_CHANNELS, means.shape[1])).indices
    shown = spread_out(len(means), _CHANNEL_POINTS)
    return tuple(
        ChannelHistory(
            number=channel,
            mean=_rounded(means[shown, channel]),
            var=_rounded(variances[shown, channel]),
        )
        for channel in sorted(most.tolist())
    )


def _rounded(values: Tensor) -> tuple[float, ...]:
    """Return values to four digits, which is finer than a picture shows."""
    return tuple(float(f"{value:.4g}") for value in values.tolist())
