"""Find out whether autocast's cache of cast weights has outlived an optimizer's step."""

from __future__ import annotations

import torch
from torch import Tensor


class AutocastCache:
    """Autocast's cache, seen through a weight of our own in it.

    Autocast casts each float32 weight once, and clears its cache where the outermost context ends.
    So in one context around several steps, the forwards after the first step use the first casts.
    https://docs.pytorch.org/docs/stable/amp.html
    """

    def __init__(self) -> None:
        self._weight: Tensor | None = None

    @property
    def is_noted(self) -> bool:
        """Tell whether autocast kept casts when the last step was noted."""
        return self._weight is not None

    def outlived_last_step(self, device: str) -> bool:
        """Tell whether it still has the casts from before the last step that was noted."""
        if self._weight is None or not _caches(device) or self._weight.device.type != device:
            return False
        self._weight.mul_(2)
        return bool(torch.mm(self._weight, self._weight) != self._weight * self._weight)

    def note_step(self, device: str) -> None:
        """Note that an optimizer steps, with parameters on this kind of device."""
        self._weight = None
        if _caches(device):
            self._weight = torch.ones(1, 1, device=device, requires_grad=True)
            torch.mm(self._weight, self._weight)


def _caches(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.is_autocast_cache_enabled()
