"""Refuse to judge while a device graph, such as a CUDA graph, is captured."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pytest_bninvariants.devices import captures_anything, is_capturing
from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.selection.walk import all_tensors


def refuse_during_capture(models: Iterable[nn.Module], when: str) -> None:
    """Refuse if a graph is being captured on a device that holds one of the models.

    Args:
        models: the models.
        when: what happens during the capture, e.g. `entered`.

    Raises:
        Refusal: if one is: nothing runs in a capture, and reading a tensor would break it.
    """
    if not captures_anything():
        return
    devices = {tensor.device for model in models for tensor in all_tensors(model)}
    for device in devices:
        if is_capturing(device):
            raise Refusal(
                f"it was {when} while a graph is captured on {device}, where nothing runs and "
                "nothing can be read; put the guard around the capture, or around replay()"
            )
