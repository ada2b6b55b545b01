"""The bare run: the same actions without a guard, and a full reading of the model after each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tests.invariants.neutral_runs import in_bytes
from tests.oracle.actions.registry import family_of, find
from tests.oracle.deeds import Deed, bare
from tests.oracle.layers import is_norm
from tests.oracle.listener import Listener
from tests.oracle.world import World, names_of, random_state, random_state_of

EAGER = {"run_compiled": "forward", "run_in_a_compiled_function": "forward"}
"""What a bare run does instead, since nobody hears what happens in compiled code."""


@dataclass(frozen=True)
class Reading:
    """A model's state at one time.

    Args:
        tensors: dtype, shape and bytes of each tensor by its bare name.
        parameters: the parameters, and whether they ask for a gradient.
        norms: the eps of each BN layer by its bare name; None if it has none.
        teacher: the tensors of the model's average.
        rest: all else that a step may leave.
    """

    tensors: dict[str, Any]
    parameters: dict[str, bool]
    norms: dict[str, float | None]
    teacher: dict[str, Any]
    rest: dict[str, object]


def read(world: World) -> Reading:
    """Read a model without the help of what is tested."""
    model = world.model
    modules = dict(model.named_modules(remove_duplicate=False))
    owned = model.named_parameters(remove_duplicate=False)
    return Reading(
        tensors=_bytes(model),
        parameters={bare(name): parameter.requires_grad for name, parameter in owned},
        norms={bare(n): getattr(m, "eps", None) for n, m in modules.items() if is_norm(m)},
        teacher={} if world.teacher is None else _bytes(world.teacher),
        rest=world.everything(),
    )


def _bytes(model: nn.Module) -> dict[str, Any]:
    return {bare(name): in_bytes(tensor) for name, tensor in names_of(model).items()}


class Timeline:
    """A world in which no guard ever is, and what each action did to it.

    Args:
        world: the world; it goes on with the random numbers that there are now.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.deeds: list[Deed] = []
        self.readings = [read(world)]
        self.modules = [self._modules()]
        self.tensors = [self._tensors()]
        self._state = random_state()

    def run(self, name: str, seed: int) -> Deed:
        """Run one more action, and return what it did."""
        deed = Deed(name, family_of(name))
        with random_state_of(self._state):
            with Listener(self.world.model, deed).listening():
                deed.outcome = self.world.do(find(EAGER.get(name, name)), seed)
            self.readings.append(read(self.world))
        self.modules.append(self._modules())
        self.tensors.append(self._tensors())
        self.deeds.append(deed)
        return deed

    def _modules(self) -> dict[str, nn.Module]:
        named = self.world.model.named_modules(remove_duplicate=False)
        return {bare(name): module for name, module in named}

    def _tensors(self) -> dict[str, Tensor]:
        return {bare(name): tensor for name, tensor in names_of(self.world.model).items()}


@dataclass(frozen=True)
class Stretch:
    """What lies between the start and the end of a guard.

    Args:
        readings: of before and after each deed.
        deeds: what was done.
        modules: the modules by bare name, at the time of each reading.
        tensors: likewise the tensors, of which only the identity is as it was.
    """

    readings: list[Reading]
    deeds: list[Deed]
    modules: list[dict[str, nn.Module]]
    tensors: list[dict[str, Tensor]]

    @classmethod
    def of(cls, timeline: Timeline, start: int, end: int) -> Stretch:
        """Return a part of a timeline."""
        return cls(
            timeline.readings[start : end + 1],
            timeline.deeds[start:end],
            timeline.modules[start : end + 1],
            timeline.tensors[start : end + 1],
        )

    @property
    def first(self) -> Reading:
        """Return the state at the start."""
        return self.readings[0]

    @property
    def last(self) -> Reading:
        """Return the state at the end."""
        return self.readings[-1]
