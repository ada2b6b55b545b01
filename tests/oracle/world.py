"""A model, and all that a drawn sequence of actions keeps beside it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.invariants.neutral_runs import everything, in_bytes
from tests.oracle.layers import CHANNELS, LENGTH, is_norm
from tests.oracle.models import ModelSpec

Action = Callable[["World"], object]


@dataclass
class World:
    """A model and what belongs to it; two worlds that do the same stay equal.

    Args:
        model: the model that guards watch.
        optimizers: optimizers that were made.
        kept: state_dicts that were kept, by reference or copied.
        losses: losses whose backward is still to run.
        copies: copies of the model, such as its average.
        teacher: the model's moving average.
        pick: what an action chooses by; the same numbers in each world.
    """

    model: nn.Module
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    copies: list[nn.Module] = field(default_factory=list)
    teacher: nn.Module | None = None
    pick: random.Random = field(default_factory=random.Random)

    @classmethod
    def build(cls, spec: ModelSpec) -> World:
        """Return a new world."""
        return cls(model=spec.build())

    def do(self, action: Action, seed: int) -> object:
        """Run an action, and return what came of it as something that compares."""
        self.pick.seed(seed)
        try:
            return in_bytes(action(self))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def everything(self) -> dict[str, object]:
        """Return all that must be equal in two worlds."""
        return {
            **everything(self.model, self.optimizers),
            "names": [*names_of(self.model)],
            "copies": [in_bytes(dict(copy.state_dict())) for copy in self.copies],
        }

    @property
    def modules(self) -> list[nn.Module]:
        """Return the model's modules, without the wrapper and the tables."""
        found = dict(self.model.named_modules())
        return [m for name, m in found.items() if name and not name.endswith("tables")]

    @property
    def module(self) -> nn.Module:
        """Return one of the modules."""
        return self.pick.choice(self.modules)

    @property
    def norms(self) -> list[nn.Module]:
        """Return the BN layers."""
        return [module for module in self.model.modules() if is_norm(module)]

    @property
    def norm(self) -> nn.Module:
        """Return one of the BN layers, or any module if there is none."""
        return self.pick.choice(self.norms or self.modules)

    @property
    def parameter(self) -> nn.Parameter:
        """Return one of the parameters."""
        return self.pick.choice(list(self.model.parameters()))

    @property
    def batch(self) -> Tensor:
        """Return a new batch."""
        generator = torch.Generator().manual_seed(self.pick.randrange(2**31))
        count = self.pick.choice((2, 4, 5))
        return torch.randn(count, CHANNELS, LENGTH, generator=generator)


def names_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a model under all of their names."""
    parameters = model.named_parameters(remove_duplicate=False)
    return dict([*parameters, *model.named_buffers(remove_duplicate=False)])


@contextlib.contextmanager
def random_state_of(state: list[Any]) -> Iterator[None]:
    """Run something with the random numbers that a world has, apart from those of another."""
    mine = random_state()
    _set_random_state(state)
    try:
        yield
    finally:
        state[:] = random_state()
        _set_random_state(mine)


def random_state() -> list[Any]:
    """Return the state of all random numbers."""
    return [torch.get_rng_state(), random.getstate(), np.random.get_state()]


def _set_random_state(state: list[Any]) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])
