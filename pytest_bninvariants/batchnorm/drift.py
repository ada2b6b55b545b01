"""The drift of a BN layer's statistics: one number for how far they moved, in nats."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_NEAR = 1e-4  # up to which three terms of the series are exact to 1e-12, and a difference is not


def statistics_drift(
    mean_before: Tensor, var_before: Tensor, mean_after: Tensor, var_after: Tensor, eps: float = 0.0
) -> float:
    """Return the mean over channels of KL(N(mean before, var before) || N(mean after, var after)).

    docs/verdict.md derives it, and says what it is where it has no value.

    Args:
        mean_before: running mean, of any shape, dtype and device.
        var_before: running variance, of the same shape.
        mean_after: running mean after the step, likewise.
        var_after: running variance after the step, likewise.
        eps: what the layer adds to a variance.
    """
    given = (mean_before, var_before, mean_after, var_after)
    # a device may lack float64, so what it holds comes to the host first
    m0, v0, m1, v1 = (each.detach().cpu().double().flatten() for each in given)
    if not m0.numel():
        return 0.0
    drifts = _divergence(m0, v0 + eps, m1, v1 + eps)
    drifts = drifts.masked_fill(_are_same(m0, m1) & _are_same(v0, v1), 0.0)
    return float(drifts.mean())


def _divergence(m0: Tensor, v0: Tensor, m1: Tensor, v1: Tensor) -> Tensor:
    """Return the divergence of each channel; infinity where one side is no normal distribution."""
    shift = (m0 - m1).square() / v1
    spread = (v0 - v1) / v1
    # spread - log(v0 / v1), by what loses no digits: each term is a square of what is left of it
    near = spread.square() * (0.5 - spread / 3 + spread.square() / 4)
    middle = spread - spread.log1p()
    far = spread - (v0.log() - v1.log())
    excess = torch.where(spread.abs() < _NEAR, near, torch.where(spread.abs() < 0.5, middle, far))
    is_normal = torch.stack([m0, v0, m1, v1]).isfinite().all(0) & (v0 > 0) & (v1 > 0)
    return ((shift + excess) / 2).masked_fill(~is_normal, math.inf)


def _are_same(old: Tensor, new: Tensor) -> Tensor:
    return (old == new) | (old.isnan() & new.isnan())
