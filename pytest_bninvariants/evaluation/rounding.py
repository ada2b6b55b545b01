"""How far apart two runs of one function may be if they round in different orders.

The function is run in its own dtype and in float64. The difference is the rounding error, which to
first order is proportional to the unit roundoff u: so float64's own error is the difference times
u64 / u. A run that adds in another order has an error of the same size, up to the ratio between the
orders: adding n terms one by one is off by about sqrt(n) u, in blocks by log2(n) u. `MARGIN` is
this ratio for more terms than layers add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import UNIT
from pytest_bninvariants.checks import is_number
from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.snapshot.host_copies import widen
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor

_TERMS = 2**18
MARGIN = math.sqrt(_TERMS) / math.log2(_TERMS)


@dataclass(frozen=True, slots=True)
class Rounding:
    """The rounding error of one output.

    Args:
        error: the largest difference between the run in its own dtype and the run in float64.
        size: the largest value.
        unit: the unit roundoff of the run.
    """

    error: float
    size: float
    unit: float

    @classmethod
    def measure(cls, narrow: Tensor, wide: Tensor, unit: float) -> Rounding:
        """Compare an output in the module's own dtype with the same output in float64.

        Args:
            narrow: the output in the module's own dtype.
            wide: the output in float64.
            unit: the unit roundoff of the module's own dtype.
        """
        return cls(_largest(distances(narrow, wide)), _largest(distances(wide, wide * 0)), unit)

    @property
    def bound(self) -> float:
        """Return how far two runs in the module's own dtype may be apart."""
        return MARGIN * (self.error + self.unit * self.size)

    @property
    def wide_bound(self) -> float:
        """Return how far two runs in float64 may be apart."""
        return self.bound * UNIT[torch.float64] / self.unit


def unit_of(tensors: list[Tensor]) -> float:
    """Return the unit roundoff of the narrowest floating dtype among tensors."""
    dtypes = {t.dtype for t in tensors if t.is_floating_point()} or {torch.float32}
    return max(UNIT.get(dtype, UNIT[torch.bfloat16]) for dtype in dtypes)


def distances(one: Tensor, other: Tensor) -> Tensor:
    """Return how far apart values are, in float64; between equal infinities or two NaN it is 0."""
    one, other = widen(one), widen(other)
    equal = (one == other) | (one.isnan() & other.isnan())
    return torch.where(equal, 0.0, (one - other).abs()).nan_to_num(nan=math.inf, posinf=math.inf)


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.max()) if len(finite) else 0.0


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far values may be apart: |d| <= atol + rtol |before|; with both 0, bits must agree.

    Raises:
        GateError: if a value is not a finite number >= 0.
    """

    rtol: float = 0.0
    atol: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value < math.inf):
                raise GateError(f"{name}= takes a number >= 0; got {describe(value)}")

    @property
    def exact(self) -> bool:
        """Tell whether bits must agree."""
        return self.rtol == self.atol == 0

    @property
    def options(self) -> dict[str, object]:
        """Return the values that differ from their defaults, by name."""
        values = {"rtol": self.rtol, "atol": self.atol}
        return {name: value for name, value in values.items() if value}

    def excess(self, kept: KeptTensor, tensor: Tensor) -> int:
        """Return how many values of a tensor are too far from the kept ones."""
        old, new = widen(kept.values), widen(tensor)
        near = (new - old).abs() <= self.atol + self.rtol * old.abs()
        return int((~(near | (new == old) | (new.isnan() & old.isnan()))).sum())
