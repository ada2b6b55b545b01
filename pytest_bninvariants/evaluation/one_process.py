"""A copy of a model that computes in one process what its ranks compute together."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection.walk import named_modules


class _BatchNormOfAnySize(nn.BatchNorm1d):
    """A BatchNorm that takes inputs of any number of dimensions, as SyncBatchNorm does."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept the input."""


def copy_for_one_process(caller: str, model: nn.Module) -> nn.Module:
    """Return a copy of a model in which no layer exchanges statistics with other ranks.

    Args:
        caller: the invariant that asks, for the message.
        model: the model.

    Raises:
        GateError: if the model cannot be copied.
    """
    try:
        single = copy.deepcopy(model)
    except Exception as error:  # a module's copying may raise anything
        raise GateError(
            f"{caller}: the model cannot be copied: {type(error).__name__}: {error}"
        ) from error
    for _, module in named_modules(single):
        if type(module) is nn.SyncBatchNorm:
            object.__setattr__(module, "__class__", _BatchNormOfAnySize)
    return single
