"""Keep what a model holds besides parameters and buffers, to compare it and to put it back."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from weakref import ProxyTypes

from torch import Tensor, nn
from torch.jit import ScriptModule

from pytest_bninvariants.attributes import has_attributes
from pytest_bninvariants.frames import is_user_file
from pytest_bninvariants.selection.walk import join, named_modules
from pytest_bninvariants.snapshot.model_state.kept_value import KeptValue
from pytest_bninvariants.torch_internals.sharding import modules_with_shards

_REGISTRIES = ("_parameters", "_buffers", "_modules")
_MOST_PARTS = 10_000
"""A longer list holds data, and is not looked into."""


class _Found(NamedTuple):
    """A value that was found in a model.

    Args:
        path: where it is.
        value: the value.
        writes: whether it may be put back.
    """

    path: str
    value: object
    writes: bool


class PlainState:
    """What a model holds besides parameters and buffers, as it is now.

    That is the attributes of its modules and of objects of the user's own classes, and what lists,
    dicts and sets in them hold. What torch's own modules hold is compared, and not put back, since
    wrappers such as DistributedDataParallel set themselves up in their first forward.

    Args:
        model: the model.

    Attributes:
        modules: all modules, those in plain lists and attributes included.
        tensors: all tensors that were found.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules: list[nn.Module] = []
        self.tensors: list[Tensor] = []
        self._compared: list[KeptValue] = []
        self._restored: list[KeptValue] = []
        self._sharded = modules_with_shards(module for _, module in named_modules(model))
        self._walk(model)
        self._forwards = {kind: _forward_of(kind) for kind in map(type, self.modules)}

    def changes(self) -> list[str]:
        """Return the names of what changed, such as `act.ready`."""
        names = [name for kept in (*self._restored, *self._compared) for name in _names(kept)]
        names += [
            f"{kind.__name__}.forward"
            for kind, forward in self._forwards.items()
            if _forward_of(kind) is not forward
        ]
        return list(dict.fromkeys(names))

    def restore(self) -> None:
        """Put back what changed."""
        for kept in self._restored:
            if kept.changed():
                kept.write()

    def _walk(self, model: nn.Module) -> None:
        seen: dict[int, object] = {}  # it keeps values alive, so that none reuses an id
        pending = [_Found("", model, writes=True)]
        while pending:
            path, value, writes = found = pending.pop()
            if id(value) in seen or not _can_change(value):
                continue
            seen[id(value)] = value
            if isinstance(value, Tensor):
                self.tensors.append(value)
            elif isinstance(value, nn.Module):
                self.modules.append(value)
                pending += self._keep_module(path, value)
            elif isinstance(value, tuple | frozenset):
                pending += [_Found(path, part, writes) for part in value]
            else:
                pending += self._keep(found)

    def _keep_module(self, path: str, module: nn.Module) -> Iterator[_Found]:
        """Keep what a module holds, and yield its attributes and what is registered in it."""
        if isinstance(module, ScriptModule):
            return
        writes = not all(map(_is_torchs, type(module).__mro__))
        attributes = self._add(KeptValue.of_object(path, module), writes=writes)
        for name, held in attributes.items():
            if name not in _REGISTRIES:
                yield _Found(join(path, name), held, writes)
        for name in _REGISTRIES:
            if name == "_parameters" and id(module) in self._sharded:
                continue  # what it holds is FSDP's to say
            registry = self._add(KeptValue.of_dict(path, vars(module)[name]), writes=True)
            for key, held in registry.items():
                yield _Found(join(path, key), held, writes=True)

    def _keep(self, found: _Found) -> Iterable[_Found]:
        """Keep what a list, dict, set or object holds, and return its parts."""
        path, value, writes = found
        if isinstance(value, dict):
            held = self._add(KeptValue.of_dict(path, value), writes=writes)
        elif isinstance(value, list | deque):
            held = self._add(KeptValue.of_list(path, value), writes=writes)
        elif isinstance(value, set):
            held = self._add(KeptValue.of_set(path, value), writes=writes)
        else:
            held = self._add(KeptValue.of_object(path, value), writes=writes)
            return [_Found(join(path, name), part, writes) for name, part in held.items()]
        if len(held) > _MOST_PARTS:
            return ()
        return [_Found(path, part, writes) for part in held.values()]

    def _add(self, kept: KeptValue, *, writes: bool) -> dict[Any, object]:
        (self._restored if writes else self._compared).append(kept)
        return kept.held


def _can_change(value: object) -> bool:
    """Tell whether a value may change in place, and is known well enough to look into it."""
    if type(value) in ProxyTypes:
        return False
    if isinstance(value, nn.Module | Tensor | dict | list | deque | set | tuple | frozenset):
        return True
    return not isinstance(value, type) and has_attributes(value) and _is_users(type(value))


def _is_torchs(kind: type) -> bool:
    """Tell whether a class is torch's; `fully_shard` derives one of its own from the user's."""
    return kind is object or kind.__module__.startswith("torch.")


def _is_users(kind: type) -> bool:
    """Tell whether a class is the user's own; the module of a notebook has no file."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return kind.__module__ == "__main__" if file is None else is_user_file(file)


def _forward_of(kind: type) -> object:
    return next((vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base)), None)


def _names(kept: KeptValue) -> Iterator[str]:
    """Yield the names of the attributes that changed; of a list or set, its own name."""
    for name in kept.changed():
        yield join(kept.path, name) if isinstance(name, str) else kept.path
