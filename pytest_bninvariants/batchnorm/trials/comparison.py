"""Compare a layer's tensor with its true value: where is it off by more than the bound?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bninvariants import run_config
from pytest_bninvariants.batchnorm.cases import LITERAL_VALUES, literal
from pytest_bninvariants.batchnorm.expectation import BoundedValue
from pytest_bninvariants.errors import GateError

_SHOWN_CHANNELS = 8


@dataclass(slots=True)
class ComparisonTally:
    """Count what was compared.

    Args:
        posed: how many comparisons were made; one in which some channels have no bound counts as
            its share of other channels.
        ill_posed: how many comparisons could not be made, counted in the same way.
        examples: how many cases were run.
        unjudged: how many of them could not be judged, each counted as its ill-posed share.
        worst: the largest error over its bound; None if none was measured.
    """

    posed: float = 0
    ill_posed: float = 0
    examples: int = 0
    unjudged: float = 0
    worst: float | None = None

    def add_comparison(self, comparison: TensorComparison, law: str) -> None:
        """Count a law's comparison; if the run is reported, measure its errors, too."""
        ill_posed = comparison.unbounded_share()
        if math.isnan(ill_posed):
            raise GateError(f"{law}: a bound is NaN, so nothing was compared")
        self.ill_posed += ill_posed
        self.posed += 1 - ill_posed
        if run_config.current.is_reported:
            self._note_worst(comparison.largest_error())

    def _note_worst(self, error: float | None) -> None:
        if error is not None:
            self.worst = error if self.worst is None else max(self.worst, error)

    def add_case(self, case: ComparisonTally) -> None:
        """Count what was compared in a case."""
        self.posed += case.posed
        self.ill_posed += case.ill_posed
        self.examples += 1
        self.unjudged += case.ill_posed / (case.posed + case.ill_posed or 1)
        self._note_worst(case.worst)


@dataclass(frozen=True, slots=True)
class TensorComparison:
    """A layer's tensor, its true value and the bound, all in float64 on the CPU.

    Args:
        got: the layer's tensor.
        value: the true value.
        bound: how far apart they may be; infinite where nothing bounds that.
        dtype: the dtype of the layer's tensor.
        axis: the axis of channels.
    """

    got: Tensor
    value: Tensor
    bound: Tensor
    dtype: torch.dtype
    axis: int

    @classmethod
    def from_tensors(cls, got: Tensor, expected: BoundedValue, axis: int) -> TensorComparison:
        """Return the comparison of a tensor in any dtype on any device."""
        wide, value, bound = (
            each.detach().to("cpu").to(torch.float64)
            for each in (got, expected.value, expected.bound)
        )
        return cls(wide, value, bound, got.dtype, axis)

    def unbounded_share(self) -> float:
        """Return the share of channels that have a place without a bound; NaN if a bound is NaN."""
        if bool(self.bound.isfinite().all()):
            return 0.0
        if bool(self.bound.isnan().any()):
            return math.nan
        unbounded = self._by_channel(self.bound).isinf().any(1)
        return int(unbounded.sum()) / self.bound.shape[self.axis]

    def largest_error(self) -> float | None:
        """Return the largest error over its bound; None if every bound is infinite or 0."""
        bounded = self.bound.isfinite() & (self.bound > 0) & self.got.isfinite()
        if not bool(bounded.any()):
            return None
        return float(((self.got - self.value).abs() / self.bound)[bounded].max())

    def wrong(self) -> Tensor:
        """Return where the layer's tensor is too far from its true value.

        An infinity is right where the true value may lie past the largest number of the dtype.
        """
        right = (self.got - self.value).abs() <= self.bound
        if not bool(right.all()):
            floats = self.dtype.is_floating_point
            largest = torch.finfo(self.dtype).max if floats else math.inf
            same_sign = self.got.sign() == self.value.sign()
            overflown = self.got.isinf() & same_sign & (self.value.abs() + self.bound > largest)
            right = right | self.bound.isinf() | overflown
        return ~right

    def table(self, wrong: Tensor) -> tuple[str, list[str]]:
        """Return in how many channels the tensor is wrong, and a table of the worst place of each.

        Args:
            wrong: where it is.
        """
        ratio = self._by_channel(self._errors(wrong))
        columns = [self._by_channel(each) for each in (self.value, self.got, self.bound)]
        bad = self._by_channel(wrong).any(1).nonzero().flatten().tolist()
        lines = [f"  channel     at  {'expected':23}  {'got':23}  {'bound':9}  error/bound"]
        for c in bad[:_SHOWN_CHANNELS]:
            i = int(ratio[c].argmax())
            value, got, bound = (float(column[c, i]) for column in columns)
            worst = float(ratio[c, i])
            lines.append(
                f"  {c:>7}  {i:>5}  {value:<23.16g}  {got:<23.16g}  {bound:<9.2g}  {worst:.3g}"
            )
        more = len(bad) - _SHOWN_CHANNELS
        lines += [f"  and {more} more channels"] if more > 0 else []
        return f"{len(bad)} of {len(ratio)} channels", lines

    def source(self, wrong: Tensor) -> list[str]:
        """Return code that makes the true value and the bound; of a large tensor at one place."""
        value, bound = self.value, self.bound
        if value.numel() > LITERAL_VALUES:
            place = self._worst_place(wrong)
            value, bound = value.flatten()[place], bound.flatten()[place]
        return [f"expected = {literal(value)}", f"bound = {literal(bound)}"]

    def check(self, expression: str, wrong: Tensor) -> str:
        """Return code that compares a tensor with what `source` makes."""
        got = f"({expression}).detach().cpu().double()"
        if self.value.numel() > LITERAL_VALUES:
            got += f".flatten()[{self._worst_place(wrong)}]"
        return f"({got} - expected).abs().le(bound).all()"

    def _worst_place(self, wrong: Tensor) -> int:
        return int(self._errors(wrong).flatten().argmax())

    def _errors(self, wrong: Tensor) -> Tensor:
        """Return the error over the bound where the tensor is wrong, and 0 elsewhere."""
        ratio = torch.where(wrong, (self.got - self.value).abs() / self.bound, 0.0)
        return ratio.nan_to_num(nan=math.inf, posinf=math.inf)

    def _by_channel(self, values: Tensor) -> Tensor:
        """Return values as rows, one a channel."""
        return values.transpose(0, self.axis).flatten(1) if values.dim() > 1 else values[:, None]
