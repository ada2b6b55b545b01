"""What an action of the bare run did: calls of modules and steps of optimizers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from torch import Tensor, nn

Statistics = dict[str, Tensor | None]
GradientKind = Literal["none", "zero", "finite", "not finite"]
WRAPPING = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


@cache
def bare(name: str) -> str:
    """Return a name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPING)


@dataclass(eq=False)
class Call:
    """One call of a module of the model.

    Args:
        module: the module.
        names: its bare names at the time.
        training: the module's mode.
        in_backward: whether autograd ran.
        used_batch: of a BN layer, whether it normalised with batch statistics; else None.
        by_hand: whether a layer of the user's own normalised, without a call of torch's function.
        by_instance: whether each sample has statistics of its own.
        momentum: of a BN layer.
        tracks: whether a BN layer tracks running statistics.
        batch: what a BN layer normalised.
        before: the layer's statistics before the call.
        after: its statistics after it.
    """

    module: nn.Module
    names: tuple[str, ...]
    training: bool
    in_backward: bool
    used_batch: bool | None = None
    by_hand: bool = False
    by_instance: bool = False
    momentum: float | None = None
    tracks: bool = True
    batch: Tensor | None = None
    before: Statistics = field(default_factory=dict)
    after: Statistics = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Held:
    """One parameter in a step of an optimizer that holds it.

    Args:
        gradient: what gradient it had.
        before: its values before the step.
        after: its values after it.
        weight_decay: of its group.
        has_moments: whether the optimizer had moments of it.
        rate: the learning rate of its group.
    """

    gradient: GradientKind
    before: Tensor
    after: Tensor
    weight_decay: float
    has_moments: bool
    rate: float


@dataclass(eq=False)
class Deed:
    """What an action did, as plain torch tells without any guard.

    Args:
        name: the action's name.
        family: the action's family.
        outcome: what it returned, or raised.
        calls: the calls of the model's modules.
        steps: the steps of optimizers: what they hold of the model, by name.
    """

    name: str
    family: str
    outcome: object = None
    calls: list[Call] = field(default_factory=list)
    steps: list[dict[str, Held]] = field(default_factory=list)

    @property
    def whole_steps(self) -> int:
        """Return how many steps of optimizers of the model it did."""
        return sum(bool(step) for step in self.steps)

    @property
    def stepped(self) -> set[str]:
        """Return the names of the parameters in optimizers that stepped."""
        return {name for step in self.steps for name in step}
