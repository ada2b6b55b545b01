"""Run a module in eval, and leave it and everything else as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.evaluation.rng_state import preserved_rng
from pytest_bninvariants.instrumentation import installation
from pytest_bninvariants.instrumentation.observer_api import Observer
from pytest_bninvariants.selection.walk import all_tensors
from pytest_bninvariants.snapshot.model_state.restore import ModelState
from pytest_bninvariants.snapshot.tensor_bytes import is_uninitialised
from pytest_bninvariants.torch_internals.private_api import disable_current_modes


@contextmanager
def in_eval(module: nn.Module, *observers: Observer) -> Iterator[None]:
    """Put a module in eval for a while, unseen by guards, and undo whatever its runs change.

    Modes, parameters, buffers and the random generators are put back; gradients are off.

    Args:
        module: the module.
        observers: the only observers that see what runs.

    Raises:
        GateError: if the module has lazy parameters, which a first forward would create.
    """
    if any(map(is_uninitialised, all_tensors(module))):
        raise GateError(
            f"{type(module).__name__} has lazy parameters without values: run a forward first"
        )
    state = ModelState(module)
    with (
        installation.observed_only_by(*observers),
        disable_current_modes(),
        preserved_rng(module),
        torch.no_grad(),
    ):
        try:
            module.eval()
            yield
        finally:
            state.restore()
