"""Run a module in its own dtype and in float64, and compare parts of a batch with the whole."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.arithmetic import UNIT
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.evaluation.call_arguments import CallArguments
from pytest_bninvariants.evaluation.eval_mode import in_eval
from pytest_bninvariants.evaluation.precision import CastModule, require_float64
from pytest_bninvariants.evaluation.rounding import Rounding, Tolerance, distances, unit_of
from pytest_bninvariants.invariants.batch_invariant.sample_batch import Order, in_words
from pytest_bninvariants.invariants.batch_invariant.whole_output import Tensors, run_module
from pytest_bninvariants.selection.walk import all_tensors
from pytest_bninvariants.snapshot.value_difference import arrow


@dataclass(frozen=True, slots=True)
class PrecisionLevel:
    """A dtype in which a module is run, and its outputs for the whole batch there.

    Args:
        name: the dtype.
        module: the module, or a copy of it.
        whole: its outputs for the whole batch, by path.
        bounds: how far off each value may be, by path.
        allowance: the words before the bound in a verdict.
    """

    name: str
    module: nn.Module
    whole: Tensors
    bounds: Tensors
    allowance: str = "rounding explains"

    def compare(self, path: str, part: Tensor | None, order: Order) -> tuple[float, str]:
        """Compare an output for a batch of some samples with the output for the whole batch.

        Args:
            path: the output.
            part: the output for some samples; None if there is none.
            order: the samples.

        Returns:
            The largest error, in bounds, and its text for a verdict; above 1 is too far.
        """
        rows, bound = self.whole[path][list(order)], self.bounds[path][list(order)]
        where = in_words(order, len(self.whole[path]))
        if part is None or part.shape != rows.shape:
            shape = "none" if part is None else tuple(part.shape)
            return torch.inf, f"{where}: shape {shape}, expected {tuple(rows.shape)}"
        errors = distances(rows, part)
        ratio = torch.where(errors > 0, errors / bound, 0.0)
        if not ratio.numel():
            return 0.0, ""
        worst = int(ratio.argmax())
        at = [int(i) for i in torch.unravel_index(torch.tensor(worst, device="cpu"), ratio.shape)]
        in_whole, in_part, error, limit = (
            tensor.flatten()[worst].item() for tensor in (rows, part, errors, bound)
        )
        got, expected = arrow(in_part, in_whole).split(" -> ")
        return float(ratio.flatten()[worst]), (
            f"{where} has {got} at {[order[at[0]], *at[1:]]}, in the batch of "
            f"{len(self.whole[path])} it is {expected}: {error:.1e} apart in {self.name}, where "
            f"{self.allowance} {limit:.1e}"
        )


def tolerated_level(module: nn.Module, whole: Tensors, tolerance: Tolerance) -> PrecisionLevel:
    """Return a module's own level, with the bounds that a user's tolerance gives."""
    bounds = {
        path: tolerance.atol + tolerance.rtol * distances(tensor, torch.zeros_like(tensor))
        for path, tensor in whole.items()
    }
    return PrecisionLevel(_dtypes(whole), module, whole, bounds, "the tolerance is")


def measured_levels(
    module: nn.Module, whole: Tensors, arguments: CallArguments, name: str, stack: ExitStack
) -> list[PrecisionLevel]:
    """Return the levels of a module, finest first, with bounds measured from its rounding errors.

    Args:
        module: the module, in eval.
        whole: its outputs for the whole batch, by path.
        arguments: the whole batch.
        name: the name of the output.
        stack: keeps a copy of the module in eval until it is closed.

    Raises:
        GateError: if a copy in another precision cannot be made or run.
    """
    tensors = [*all_tensors(module), *whole.values()]
    require_float64(tensors, "measure rounding", ", or give rtol= or atol=")
    unit = unit_of(tensors)
    in_float64 = unit == UNIT[torch.float64]
    copy = CastModule(module, torch.float32 if in_float64 else torch.float64)
    stack.enter_context(in_eval(copy))
    try:
        run = run_module(copy, arguments, name)
        other = {path: run[path] for path in whole}
        narrow, wide = (other, whole) if in_float64 else (whole, other)
        unit = UNIT[torch.float32] if in_float64 else unit
        roundings = {path: Rounding.measure(narrow[path], wide[path], unit) for path in whole}
    except Exception as error:  # a module may raise anything in another dtype
        raise GateError(
            f"{type(module).__name__} cannot be run in {'float32' if in_float64 else 'float64'}, "
            f"which is needed to measure rounding: {type(error).__name__}: {error}; give rtol= or "
            "atol="
        ) from error
    fine = {path: _filled(whole[path], each.wide_bound) for path, each in roundings.items()}
    if in_float64:
        return [PrecisionLevel("float64", module, whole, fine)]
    coarse = {path: _filled(whole[path], each.bound) for path, each in roundings.items()}
    return [
        PrecisionLevel("float64", copy, wide, fine),
        PrecisionLevel(_dtypes(whole), module, whole, coarse),
    ]


def _filled(tensor: Tensor, bound: float) -> Tensor:
    """Return the bound of each value; it is 0 for integers, which do not round."""
    rounds = tensor.is_floating_point() or tensor.is_complex()
    return torch.full(tensor.shape, bound if rounds else 0.0, dtype=torch.float64, device="cpu")


def _dtypes(tensors: Tensors) -> str:
    names = (str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return " and ".join(dict.fromkeys(names))
