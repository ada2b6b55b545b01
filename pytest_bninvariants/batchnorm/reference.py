"""BatchNorm in float64, from the definition, written to be read.

Sources: Ioffe and Szegedy, "Batch Normalization", arXiv:1502.03167 (normalisation: Algorithm 1,
gradients: section 3); for running statistics and the counter, which it leaves open, PyTorch's
`torch/nn/modules/batchnorm.py` and `aten/src/ATen/native/Normalization.cpp`.

Inside, a batch is a matrix with one row a channel: shape (C, n), where n counts samples times
positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Statistics(NamedTuple):
    """The statistics that a batch is normalised with.

    Args:
        mean: per channel, shape (C,), float64.
        var: per channel, biased where it is a batch's, shape (C,), float64.
    """

    mean: Tensor
    var: Tensor


class BatchNormGradients(NamedTuple):
    """The gradients of a loss, in float64.

    Args:
        input: shape of the input.
        weight: shape (C,), whether or not the layer has a weight.
        bias: shape (C,), likewise.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor


def rows(x: Tensor) -> Tensor:
    """Return a batch (N, C, *) as float64 rows (C, n) on the CPU, differentiably."""
    return x.to("cpu").to(torch.float64).transpose(0, 1).flatten(1)


def unrows(values: Tensor, shape: torch.Size) -> Tensor:
    """Return rows (C, n) as a batch of a shape (N, C, *)."""
    n, c, *positions = shape
    return values.reshape(c, n, *positions).transpose(0, 1)


def batch_statistics(values: Tensor) -> Statistics:
    """Return mean and biased variance of rows (C, n).

    Each is corrected by what rounding left over (Chan, Golub and LeVeque, "Algorithms for
    computing the sample variance", 1983, equation 1.7), so that float64 serves as the truth for
    float32 at any offset.
    """
    rough = values.mean(1, keepdim=True)
    mean = rough + (values - rough).mean(1, keepdim=True)
    deviation = values - mean
    var = deviation.square().mean(1) - deviation.mean(1).square()
    return Statistics(mean.squeeze(1), var)


def normalised(values: Tensor, statistics: Statistics, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) of rows (C, n)."""
    scale = (statistics.var + eps).rsqrt()
    return (values - statistics.mean[:, None]) * scale[:, None]


def gradients_of(
    values: Tensor, g: Tensor, statistics: Statistics, eps: float, weight: Tensor, from_batch: bool
) -> BatchNormGradients:
    """Return the gradients of a loss, the input's as rows.

    With xh = (x - mean) r, r = (var + eps)^-1/2, and bars for means over a channel:
    d bias = sum(g), d weight = sum(g xh), and d x = w r g where the statistics are stored, or
    w r (g - bar(g) - xh bar(g xh)) where they depend on x (arXiv:1502.03167, section 3).

    Args:
        values: the input, rows (C, n).
        g: the gradient with respect to the output, rows (C, n).
        statistics: what the input was normalised with.
        eps: what is added to the variance.
        weight: shape (C,).
        from_batch: whether the statistics are the batch's.
    """
    xh = normalised(values, statistics, eps)
    of_weight, of_bias = (g * xh).sum(1), g.sum(1)
    if from_batch:
        g = g - g.mean(1, keepdim=True) - xh * (g * xh).mean(1, keepdim=True)
    scale = weight * (statistics.var + eps).rsqrt()
    return BatchNormGradients(g * scale[:, None], of_weight, of_bias)


class ReferenceBatchNorm(nn.Module):
    """Compute what a BatchNorm must compute, for inputs of rank 2 to 5, in float64 on the CPU.

    It has the state of `nn.BatchNorm*`, so `load_state_dict(layer.state_dict())` makes it a twin of
    a layer. Its forward can be differentiated twice; `gradients` computes them from the formulas.

    Args:
        num_features: C, the number of channels.
        eps: what is added to the variance.
        momentum: the weight of the new batch in the running statistics; None: cumulative average.
        affine: whether there are a weight and a bias, shape (C,).
        track_running_stats: whether there are running statistics and a counter.
        bias: whether there is a bias if `affine`; newer versions of torch have this argument.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import ReferenceBatchNorm
        >>> layer, twin = torch.nn.BatchNorm1d(2), ReferenceBatchNorm(2)
        >>> twin.load_state_dict(layer.state_dict())
        <All keys matched successfully>
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> torch.allclose(layer(x).double(), twin(x))
        True
        >>> twin.running_mean
        tensor([0.2000, 0.4000], dtype=torch.float64)
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        zeros, ones = (
            torch.full((num_features,), value, dtype=torch.float64, device="cpu")
            for value in (0.0, 1.0)
        )
        self.register_parameter("weight", nn.Parameter(ones.clone()) if affine else None)
        self.register_parameter("bias", nn.Parameter(zeros.clone()) if affine and bias else None)
        tracked = track_running_stats
        self.register_buffer("running_mean", zeros if tracked else None)
        self.register_buffer("running_var", ones if tracked else None)
        counter = torch.tensor(0, device="cpu")
        self.register_buffer("num_batches_tracked", counter if tracked else None)

    @property
    def uses_batch_statistics(self) -> bool:
        """Tell whether the next forward normalises with the batch's own statistics."""
        return self.training or self.running_mean is None

    @property
    def tracks(self) -> bool:
        """Tell whether the next forward counts its batch and tracks its statistics."""
        return self.training and self.track_running_stats

    @property
    def factor(self) -> float:
        """Return the weight that the latest counted batch has in the running statistics."""
        if self.momentum is not None:
            return self.momentum
        assert self.num_batches_tracked is not None
        return 1.0 / int(self.num_batches_tracked)

    def statistics(self, values: Tensor) -> Statistics:
        """Return the statistics that rows (C, n) are normalised with in the present mode."""
        if self.uses_batch_statistics:
            return batch_statistics(values)
        assert self.running_mean is not None
        assert self.running_var is not None
        return Statistics(self.running_mean, self.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch, and in training count it and track its statistics.

        Args:
            x: shape (N, C, *), 2 to 5 dimensions, any floating dtype and device.

        Returns:
            float64 on the CPU, shape of x.

        Raises:
            ValueError: if the rank or the number of channels is wrong, or each channel has only one
                value, which has no variance.
        """
        self._check(x)
        if self.tracks and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        y = values = rows(x)
        if values.numel():
            y = self._normalised(values, x.shape)
        if self.weight is not None:
            y = y * self.weight[:, None]
        if self.bias is not None:
            y = y + self.bias[:, None]
        return unrows(y, x.shape)

    def _normalised(self, values: Tensor, shape: torch.Size) -> Tensor:
        if self.uses_batch_statistics and values.shape[1] == 1:
            raise ValueError(f"one value per channel has no variance: input {tuple(shape)}")
        statistics = self.statistics(values)
        if self.tracks and self.running_mean is not None:
            self._track(statistics, values.shape[1])
        return normalised(values, statistics, self.eps)

    @torch.no_grad()
    def _track(self, statistics: Statistics, n: int) -> None:
        """Update the running statistics with a batch: new = (1 - m) old + m batch's.

        The variance that is stored is the unbiased one, n/(n-1) times the batch's.
        """
        assert self.running_mean is not None
        assert self.running_var is not None
        m = self.factor
        self.running_mean.mul_(1 - m).add_(m * statistics.mean)
        self.running_var.mul_(1 - m).add_(m * statistics.var * (n / (n - 1)))

    @torch.no_grad()
    def gradients(self, x: Tensor, grad: Tensor) -> BatchNormGradients:
        """Return the gradients of a loss in the present mode, without changing the state.

        Args:
            x: the input, shape (N, C, *).
            grad: g, the gradient with respect to the output, shape of x.

        Raises:
            ValueError: if x is not a batch for this layer, or grad has another shape.
        """
        self._check(x)
        if grad.shape != x.shape:
            raise ValueError(f"grad has shape {tuple(grad.shape)}, the input {tuple(x.shape)}")
        values, g = rows(x), rows(grad)
        ones = torch.ones(self.num_features, dtype=torch.float64, device="cpu")
        weight = ones if self.weight is None else self.weight
        of_input, of_weight, of_bias = gradients_of(
            values, g, self.statistics(values), self.eps, weight, self.uses_batch_statistics
        )
        return BatchNormGradients(unrows(of_input, x.shape), of_weight, of_bias)

    def _check(self, x: Tensor) -> None:
        if not 2 <= x.dim() <= 5:
            raise ValueError(f"a batch has 2 to 5 dimensions, this has {x.dim()}")
        if x.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} channels, got {x.shape[1]}")

    def extra_repr(self) -> str:
        """Return the constructor's arguments, for repr."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )
