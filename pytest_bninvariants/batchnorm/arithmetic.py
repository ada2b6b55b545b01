"""The arithmetic of a correct BatchNorm: unit roundoffs, and the depth of its sums.

docs/tolerance.md derives the numbers. The model is that of Higham, "Accuracy and Stability of
Numerical Algorithms", chapters 3 and 4: a result of k roundings is off by at most
gamma(k) = k u / (1 - k u), and a sum by gamma(h) sum|x|, where h is the most additions that a term
goes through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT64 = torch.float64
# the unit roundoff u, half of torch.finfo(dtype).eps: docs/tolerance.md, "The model"
UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
# half of the smallest subnormal; in float64 a whole one, since no float64 is half of it
TINY = {
    torch.float64: 5e-324,
    torch.float32: 2.0**-150,
    torch.float16: 2.0**-25,
    torch.bfloat16: 2.0**-134,
}
_HALF = (torch.float16, torch.bfloat16)


def gamma(k: float, unit: float) -> float:
    """Return the relative error of k roundings, infinite where k u reaches 1."""
    return k * unit / (1 - k * unit) if k * unit < 1 else math.inf


def cascade_depth(n: int) -> int:
    """Return the most additions that a term of `torch.sum` over n float32 values goes through.

    Source: cascade_sum in
    https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/cpu/SumKernel.cpp.
    """
    levels, least_terms, lanes = 4, 16, 32  # lanes of a vector, and what is left over of them
    return min(n, levels * max(least_terms, math.ceil(2 * math.sqrt(math.sqrt(n)))) + lanes)


def sum_depth(
    samples: int, positions: int, dtype: torch.dtype, device: str, *, rowwise: bool, threads: int
) -> int:
    """Return the most additions that a term of a channel's sum goes through.

    Args:
        samples: N.
        positions: L, positions of a sample.
        dtype: of the input.
        device: type of the device, such as `cpu`.
        rowwise: whether a channel's positions lie side by side in memory: contiguous, L > 1.
        threads: how many threads share the sum, on the CPU.
    """
    n = samples * positions
    if device != "cpu":  # at least a warp of 32 threads shares a channel, then reduces in a tree
        return math.ceil(n / 32) + 16
    if dtype is not torch.float32:  # torch.batch_norm adds one by one, in all but float32
        return n + 1
    if rowwise:  # a cascade along each row, then the rows one by one
        return samples + cascade_depth(positions) + threads
    return max(math.ceil(n / threads) + 1, cascade_depth(n)) + threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """The arithmetic that a layer may use.

    Args:
        operations: dtype of single operations.
        sums: dtype of sums.
        input: dtype of input, output and the input's gradient.
        state: dtype of parameters, their gradients and running statistics.
    """

    operations: torch.dtype
    sums: torch.dtype
    input: torch.dtype
    state: torch.dtype

    @property
    def unit(self) -> float:
        """Return the unit roundoff of single operations."""
        return UNIT[self.operations]

    @property
    def sum_unit(self) -> float:
        """Return the unit roundoff of sums."""
        return UNIT[self.sums]

    @classmethod
    def for_dtypes(cls, input_dtype: torch.dtype, state_dtype: torch.dtype) -> Arithmetic:
        """Return what dtypes demand: float32 inside, half only where all tensors are half."""
        widest = FLOAT64 if FLOAT64 in (input_dtype, state_dtype) else torch.float32
        all_half = input_dtype in _HALF and state_dtype in _HALF
        return cls(
            operations=state_dtype if all_half else widest,
            sums=widest,
            input=input_dtype,
            state=state_dtype,
        )

    def storing_error(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Return by how much a value may change when it is stored in a dtype."""
        unit = 0.0 if UNIT[dtype] <= self.unit and dtype not in _HALF else UNIT[dtype]
        return unit * value.abs() + TINY[dtype]

    def underflow_error(self, scale: Tensor, weight: Tensor) -> Tensor:
        """Return what intermediate results near zero lose before they are multiplied.

        The factor 4 is derived in docs/tolerance.md, "Output".
        """
        return 4 * TINY[self.operations] * (1 + scale) * (1 + weight.abs())

    def gamma(self, k: int) -> float:
        """Return the relative error of k operations."""
        return gamma(k, self.unit)

    def with_reference_error(self, bound: Tensor) -> Tensor:
        """Return a bound that covers the reference's own error, which is that of float64."""
        return bound * (1 + UNIT[FLOAT64] / self.unit)
