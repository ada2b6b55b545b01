"""Run a module in its own dtype and in float64, and hold parts of a batch against the whole."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.arithmetic import UNIT
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.evaluation.batches import Batch, Order, described, tensors_of
from pytest_bninvariants.evaluation.eval_mode import Call, in_eval
from pytest_bninvariants.evaluation.precision import Cast
from pytest_bninvariants.evaluation.rounding import Rounding, Tolerance, distances, unit_of
from pytest_bninvariants.selection.model_names import all_tensors
from pytest_bninvariants.snapshot.value_difference import arrow

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Level:
    """One way in which a module is run, and what it made of the whole batch.

    Args:
        name: the dtype that it computes in.
        module: the module, or a copy of it.
        whole: its outputs of the whole batch, by path.
        bounds: how far each value may be off.
        allowance: what is said of a bound.
    """

    name: str
    module: nn.Module
    whole: Tensors
    bounds: Tensors
    allowance: str = "rounding explains"

    def compare(self, path: str, got: Tensor | None, order: Order) -> tuple[float, str]:
        """Hold an output of a batch of some samples against the whole batch's.

        Args:
            path: the output.
            got: what it is; None where there is none.
            order: the samples.

        Returns:
            The largest error, in bounds, and if that is over 1 what is said of it.
        """
        rows, bound = self.whole[path][list(order)], self.bounds[path][list(order)]
        where = described(order, len(self.whole[path]))
        if got is None or got.shape != rows.shape:
            shape = "none" if got is None else tuple(got.shape)
            return torch.inf, f"{where}: shape {shape}, expected {tuple(rows.shape)}"
        apart = distances(rows, got)
        ratio = torch.where(apart > 0, apart / bound, 0.0)
        if not ratio.numel():
            return 0.0, ""
        worst = int(ratio.argmax())
        at = [int(i) for i in torch.unravel_index(torch.tensor(worst), ratio.shape)]
        was, now, off, most = (
            tensor.flatten()[worst].item() for tensor in (rows, got, apart, bound)
        )
        shown, wanted = arrow(now, was).split(" -> ")
        return float(ratio.flatten()[worst]), (
            f"{where} has {shown} at {[order[at[0]], *at[1:]]}, in the batch of "
            f"{len(self.whole[path])} it is {wanted}: {off:.1e} apart in {self.name}, where "
            f"{self.allowance} {most:.1e}"
        )


def run(module: nn.Module, call: Call, name: str) -> Tensors:
    """Call a module that is in eval, and return copies of its output's tensors by path."""
    copied = call.map(torch.clone)
    return tensors_of(module(*copied.args, **copied.kwargs), name)


def tolerated(module: nn.Module, whole: Tensors, tolerance: Tolerance) -> list[Level]:
    """Return the module's own level, with a user's tolerance."""
    bounds = {
        path: tolerance.atol + tolerance.rtol * distances(tensor, torch.zeros_like(tensor))
        for path, tensor in whole.items()
    }
    return [Level(_dtypes(whole), module, whole, bounds, "the tolerance is")]


def measured(
    module: nn.Module, whole: Tensors, batch: Batch, name: str, stack: ExitStack
) -> list[Level]:
    """Return the levels of a module, finest first, with bounds that its rounding errors give.

    Args:
        module: the module, in eval.
        whole: its outputs of the whole batch, by path.
        batch: the whole batch.
        name: what the output is called.
        stack: keeps copies in eval.

    Raises:
        GateError: a copy in another precision cannot be made or run.
    """
    unit = unit_of([*all_tensors(module), *whole.values()])
    in_float64 = unit == UNIT[torch.float64]
    cast = Cast(module, torch.float32 if in_float64 else torch.float64)
    stack.enter_context(in_eval(cast))
    try:
        other = run(cast, batch.call, name)
        narrow, wide = (other, whole) if in_float64 else (whole, other)
        unit = UNIT[torch.float32] if in_float64 else unit
        found = {path: Rounding.of(narrow[path], wide[path], unit) for path in whole}
    except Exception as error:  # whatever the module raises in another dtype
        raise GateError(
            f"{type(module).__name__} cannot be run in {'float32' if in_float64 else 'float64'}, "
            f"which tells how far rounding goes: {type(error).__name__}: {error}; give rtol= or "
            "atol="
        ) from error
    fine = {path: _filled(whole[path], rounding.wide_bound) for path, rounding in found.items()}
    if in_float64:
        return [Level("float64", module, whole, fine)]
    own = {path: _filled(whole[path], rounding.bound) for path, rounding in found.items()}
    return [Level("float64", cast, wide, fine), Level(_dtypes(whole), module, whole, own)]


def _filled(tensor: Tensor, bound: float) -> Tensor:
    """Return a bound for each value: none for integers, which do not round."""
    rounds = tensor.is_floating_point() or tensor.is_complex()
    return torch.full(tensor.shape, bound if rounds else 0.0, dtype=torch.float64)


def _dtypes(tensors: Tensors) -> str:
    names = (str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return " and ".join(dict.fromkeys(names))
