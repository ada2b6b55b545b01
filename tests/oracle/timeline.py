"""The bare run: the same actions without a guard, and a full reading of the model after each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.invariants.neutral_runs import in_bytes
from tests.oracle.layers import is_norm, normalises
from tests.oracle.world import Action, World, names_of, random_state, random_state_of

WRAPPING = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def bare(name: str) -> str:
    """Return a name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPING)


@dataclass(frozen=True)
class Reading:
    """A model's state at one time.

    Args:
        tensors: dtype, shape and bytes of each tensor by its bare name.
        parameters: which of these are parameters.
        norms: the eps of each BN layer by its bare name.
        rest: all else that a step may leave.
    """

    tensors: dict[str, Any]
    parameters: frozenset[str]
    norms: dict[str, float | None]
    rest: dict[str, object]


@dataclass(frozen=True)
class Call:
    """One call of a module of the model.

    Args:
        names: the module's bare names.
        used_batch: of a BN layer, whether it normalised with batch statistics; else None.
        training: the module's mode.
        in_backward: whether autograd ran.
    """

    names: tuple[str, ...]
    used_batch: bool | None
    training: bool
    in_backward: bool


@dataclass
class Deed:
    """What an action did, as plain torch tells without any guard.

    Args:
        name: the action's name.
        outcome: what it returned, or raised.
        calls: the calls of the model's modules.
        stepped: the parameters by name in optimizers that stepped.
    """

    name: str
    outcome: object = None
    calls: list[Call] = field(default_factory=list)
    stepped: set[str] = field(default_factory=set)


def read(world: World) -> Reading:
    """Read a model without the help of what is tested."""
    model = world.model
    modules = dict(model.named_modules(remove_duplicate=False))
    norms = {bare(n): getattr(m, "eps", None) for n, m in modules.items() if is_norm(m)}
    owned = dict(model.named_parameters(remove_duplicate=False))
    return Reading(
        tensors={bare(name): in_bytes(tensor) for name, tensor in names_of(model).items()},
        parameters=frozenset(map(bare, owned)),
        norms=norms,
        rest=world.everything(),
    )


class Timeline:
    """A world in which no guard ever is, and what each action did to it.

    Args:
        world: the world; it goes on with the random numbers that there are now.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.deeds: list[Deed] = []
        self.readings = [read(world)]
        self._state = random_state()

    def run(self, name: str, action: Action, seed: int) -> Deed:
        """Run one more action, and return what it did."""
        deed = Deed(name)
        with random_state_of(self._state), self._heard(deed):
            deed.outcome = self.world.do(action, seed)
        with random_state_of(self._state):
            self.readings.append(read(self.world))
        self.deeds.append(deed)
        return deed

    @contextlib.contextmanager
    def _heard(self, deed: Deed) -> Iterator[None]:
        def called(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            in_backward = torch._C._current_graph_task_id() != -1
            names = self._names_of(module)
            if names:
                deed.calls.append(Call(names, None, module.training, in_backward))
            for layer, used_batch in normalises(module, *inputs):
                names = self._names_of(layer)
                if names:
                    deed.calls.append(Call(names, used_batch, layer.training, in_backward))

        def stepped(optimizer: torch.optim.Optimizer, *_: object) -> None:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            deed.stepped |= {n for n, t in self._tensors().items() if id(t) in held}

        hooks = [
            register_module_forward_pre_hook(called),
            register_optimizer_step_post_hook(stepped),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _names_of(self, module: nn.Module) -> tuple[str, ...]:
        named = self.world.model.named_modules(remove_duplicate=False)
        return tuple(bare(name) for name, each in named if each is module)

    def _tensors(self) -> dict[str, Tensor]:
        return {bare(name): tensor for name, tensor in names_of(self.world.model).items()}
