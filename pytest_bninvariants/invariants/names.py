"""A model's modules and tensors by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import repeat
from operator import attrgetter, is_
from typing import Literal, NamedTuple

from torch import Tensor, nn

Kind = Literal["parameter", "buffer", "output"]
_WRAPPER_CHILDREN = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
_WILDCARDS = frozenset("*?")


class Rows(NamedTuple):
    """What there is to say of a model's tensors besides the tensors, a list for each thing.

    Args:
        keys: qualified names without wrapper prefixes.
        names: qualified names.
        layers: qualified names of the modules that own them.
        kinds: what they are registered as.
    """

    keys: list[str]
    names: list[str]
    layers: list[str]
    kinds: list[Kind]

    def of(self, tensors: Iterable[Tensor]) -> dict[str, Watched]:
        """Return it together with tensors; by C code alone, there may be ten thousands."""
        told = zip(self.names, self.layers, self.kinds, tensors, strict=True)
        return dict(zip(self.keys, map(tuple.__new__, repeat(Watched), told), strict=True))


class Watched(NamedTuple):
    """One watched tensor, under one of its names.

    Args:
        name: qualified name in the model.
        layer: qualified name of the module that owns it.
        kind: whether it is registered as a parameter or as a buffer, or is a module's output.
        tensor: the tensor itself.
    """

    name: str
    layer: str
    kind: Kind
    tensor: Tensor


@dataclass(frozen=True)
class Names:
    """A model's modules by name, with and without the prefixes that wrappers put into names.

    Args:
        modules: all modules, by qualified name.
        bare: those names without wrapper prefixes.
        known: all of its tensors by key, if they are known.
    """

    modules: dict[str, nn.Module]
    bare: dict[str, str]
    known: dict[str, Watched] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Names:
        """Read the names off a model."""
        names = cls({}, {})
        names._add(model, "", "")
        return names

    def _add(self, module: nn.Module, name: str, bare: str) -> None:
        self.modules[name], self.bare[name] = module, bare
        children = module._modules
        alone = len(children) == 1
        for child, below in children.items():
            if below is not None:
                wrapped = alone and child in _WRAPPER_CHILDREN
                self._add(below, _join(name, child), bare if wrapped else _join(bare, child))

    def spelled(self, pattern: str) -> str:
        """Return a pattern, without wrapper prefixes if it matches nothing as it is."""
        if any(covers(pattern, bare, name) for name, bare in self.bare.items()):
            return pattern
        if any(covers(pattern, key, watched.name) for key, watched in self.tensors.items()):
            return pattern
        return ".".join(part for part in pattern.split(".") if part not in _WRAPPER_CHILDREN)

    @cached_property
    def tensors(self) -> dict[str, Watched]:
        """Return every tensor of the model, tied ones under each name, with its bare name first."""
        if self.known is not None:
            return self.known
        found: dict[str, Watched] = {}
        for owner, module in self.modules.items():
            if not (module._parameters or module._buffers):
                continue
            layer = owner.partition(".parametrizations.")[0]  # keeps a layer's state one level down
            prefix, bare = _join(owner, ""), _join(self.bare[owner], "")
            for kind, name, tensor in own_tensors(module):
                full = prefix + name
                key = full if bare is prefix or bare + name in found else bare + name
                found[key] = Watched(full, layer, kind, tensor)
        return found

    @property
    def rows(self) -> Rows:
        """Return what there is to say of these tensors."""
        every = self.tensors.values()
        return Rows(
            [*self.tensors],
            [each.name for each in every],
            [each.layer for each in every],
            [each.kind for each in every],
        )


class Layout:
    """Which objects hold which names in a model; it holds on to them, so that they stay unlike.

    Args:
        model: the model.

    Attributes:
        names: the names, and how many each module has of parameters, buffers and children.
        kinds: the types of the modules, and of what they hold.
        modules: all modules, in the order of their names; None where there is none.
        tensors: all parameters and buffers, likewise.
    """

    def __init__(self, model: nn.Module) -> None:
        names: list[object] = []
        modules: list[nn.Module | None] = []
        tensors: list[Tensor | None] = []
        waiting: list[nn.Module | None] = [model]
        while waiting:
            module = waiting.pop()
            modules.append(module)
            if module is None:
                continue
            parameters, buffers, children = _held_by(module)
            names += len(parameters), len(buffers), len(children)
            if parameters:
                names += parameters.keys()
                tensors += parameters.values()
            if buffers:
                names += buffers.keys()
                tensors += buffers.values()
            if children:
                names += children.keys()
                waiting += reversed([*children.values()])
        self.names, self.modules, self.tensors = names, modules, tensors
        self.kinds: list[type] = [*map(type, modules), *map(type, tensors)]

    def is_like(self, other: Layout) -> bool:
        """Tell whether the same objects hold the same names."""
        return (
            self.names == other.names
            and all(map(is_, self.modules, other.modules))
            and all(map(is_, self.tensors, other.tensors))
            and self.kinds == other.kinds
        )


_held_by = attrgetter("_parameters", "_buffers", "_modules")


def named_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and all below it, under every name, as torch's method unless overridden."""
    yield name, module
    for child, below in module._modules.items():
        if below is not None:
            yield from named_modules(below, _join(name, child))


def all_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a module and of all below it."""
    for _, below in named_modules(module):
        for _, _, tensor in own_tensors(below):
            yield tensor


def own_tensors(module: nn.Module) -> Iterator[tuple[Kind, str, Tensor]]:
    """Yield a module's own parameters and buffers, non-persistent ones too."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield "parameter", name, parameter
    for name, buffer in module._buffers.items():
        if buffer is not None:
            yield "buffer", name, buffer


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child


def covers(pattern: str, *names: str) -> bool:
    """Tell whether a pattern is one of these names, or the name of one of their parents."""
    if not _WILDCARDS.intersection(pattern):
        below = f"{pattern}."
        return not pattern or any(name == pattern or name.startswith(below) for name in names)
    plain = pattern.replace("[", "[[]")  # to fnmatch brackets are special, in names they are not
    return any(fnmatchcase(name, plain) or fnmatchcase(name, f"{plain}.*") for name in names)
