"""The output of a module for the whole batch, to compare its outputs for parts with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.evaluation.call_arguments import CallArguments
from pytest_bninvariants.evaluation.pytrees import leaves
from pytest_bninvariants.evaluation.rounding import distances
from pytest_bninvariants.invariants.batch_invariant.sample_batch import SampleBatch

Tensors = dict[str, Tensor]
"""Tensors of an output, by path."""


def run_module(module: nn.Module, arguments: CallArguments, name: str) -> Tensors:
    """Call a module that is in eval, and return copies of its output's tensors by path."""
    output = arguments.pass_to(module)
    return {
        path: leaf.detach().clone()
        for path, leaf in leaves(output, name)
        if isinstance(leaf, Tensor)
    }


@dataclass(frozen=True, slots=True)
class WholeOutput:
    """The output of a module for the whole batch.

    Args:
        rows: the tensors with a row for each sample, by path.
        left_out: the paths of the other tensors.
    """

    rows: Tensors
    left_out: list[str]

    @classmethod
    def run(cls, module: nn.Module, name: str, batch: SampleBatch) -> WholeOutput:
        """Run a module that is in eval on the whole batch.

        Args:
            module: the module.
            name: the name of its output.
            batch: the whole batch.

        Raises:
            Refusal: if the module raises, or returns no tensor with a row for each sample.
        """
        try:
            tensors = run_module(module, batch.arguments, name)
        except Exception as error:  # whatever it raises, it gives no output to judge
            raise Refusal(
                f"{type(module).__name__} in eval raised on the whole batch: "
                f"{type(error).__name__}: {error}"
            ) from error
        rows = _with_rows(tensors, module, name, batch)
        if not rows:
            shapes = ", ".join(f"{path} {tuple(tensor.shape)}" for path, tensor in tensors.items())
            raise Refusal(
                f"no output has a row for each of the {batch.size} samples; the module returned "
                f"{shapes or 'no tensor'}"
            )
        return cls(rows, [path for path in tensors if path not in rows])

    @property
    def rows_differ(self) -> bool:
        """Tell whether the samples have different outputs."""
        return any(bool(distances(t, t[:1].expand_as(t)).any()) for t in self.rows.values())


def _with_rows(tensors: Tensors, module: nn.Module, name: str, batch: SampleBatch) -> Tensors:
    """Return the tensors with a row for each sample, in a smaller batch as well."""
    rows = {path: t for path, t in tensors.items() if t.dim() and len(t) == batch.size}
    fewer = batch.size - 1
    try:
        smaller = run_module(module, batch.part(tuple(range(fewer))), name)
    except Exception:  # a batch that raises is reported when the trial draws it
        return rows
    return {
        path: tensor
        for path, tensor in rows.items()
        if path not in smaller or (smaller[path].dim() and len(smaller[path]) == fewer)
    }
