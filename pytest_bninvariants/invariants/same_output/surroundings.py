"""What a module's output depends on besides its parameters and buffers."""

from __future__ import annotations

import torch
from torch import nn

from pytest_bninvariants.snapshot.model_state.plain_state import PlainState


class Surroundings:
    """A module's attributes and hooks, its forward, and torch's settings, as they are now.

    Args:
        model: the module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attributes = PlainState(model)
        self._settings = _torch_settings()

    def changes(self) -> list[str]:
        """Return the names of what changed."""
        now = _torch_settings()
        settings = [name for name, value in self._settings.items() if now[name] != value]
        return [*self._attributes.changes(), *settings]


def _torch_settings() -> dict[str, object]:
    """Return the settings of torch that kernels read, by the name of the function or flag."""
    return {
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision(),
        "torch.are_deterministic_algorithms_enabled()": (
            torch.are_deterministic_algorithms_enabled()
        ),
        "torch.backends.cudnn.enabled": torch.backends.cudnn.enabled,
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "torch.backends.cudnn.deterministic": torch.backends.cudnn.deterministic,
    }
