"""A model's modules and tensors by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from operator import attrgetter, is_
from typing import Literal, NamedTuple

from torch import Tensor, nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection.lazy_mapping import LazyMapping

Kind = Literal["parameter", "buffer", "output"]
_WRAPPER_CHILDREN = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
_WILDCARDS = frozenset("*?")
_MANY = 2**15  # modules, from which on it is looked whether one is below itself


class WatchedTensor(NamedTuple):
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


class TensorColumns(NamedTuple):
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


class TensorTable(LazyMapping[WatchedTensor]):
    """A model's tensors by key.

    Args:
        columns: what there is to say of the tensors.
        tensors: the tensors.
    """

    def __init__(self, columns: TensorColumns, tensors: list[Tensor]) -> None:
        self.columns, self.tensors = columns, tensors

    @classmethod
    def from_mapping(cls, watched: Mapping[str, WatchedTensor]) -> TensorTable:
        """Make it of rows that are there."""
        if isinstance(watched, TensorTable):
            return watched
        every = watched.values()
        columns = TensorColumns(
            [*watched],
            [each.name for each in every],
            [each.layer for each in every],
            [each.kind for each in every],
        )
        return cls(columns, [each.tensor for each in every])

    @cached_property
    def by_key(self) -> dict[str, Tensor]:
        """Return the tensors alone."""
        return dict(zip(self.columns.keys, self.tensors, strict=True))

    def _make(self) -> dict[str, WatchedTensor]:
        keys, names, layers, kinds = self.columns
        made = map(WatchedTensor, names, layers, kinds, self.tensors)
        return dict(zip(keys, made, strict=True))

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.keys)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, key: object) -> bool:
        return key in self.by_key


@dataclass(frozen=True)
class ModelNames:
    """A model's modules by name, with and without the prefixes that wrappers put into names.

    Args:
        modules: all modules, by qualified name.
        bare: those names without wrapper prefixes.
        known: all of its tensors by key, if they are known.
    """

    modules: dict[str, nn.Module]
    bare: dict[str, str]
    known: TensorTable | None = None

    @classmethod
    def from_model(cls, model: nn.Module) -> ModelNames:
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
                self._add(below, join(name, child), bare if wrapped else join(bare, child))

    def spelled(self, pattern: str) -> str:
        """Return a pattern, without wrapper prefixes if it matches nothing as it is."""
        if any(covers(pattern, bare, name) for name, bare in self.bare.items()):
            return pattern
        if any(covers(pattern, key, watched.name) for key, watched in self.tensors.items()):
            return pattern
        return ".".join(part for part in pattern.split(".") if part not in _WRAPPER_CHILDREN)

    @cached_property
    def tensors(self) -> TensorTable:
        """Return every tensor of the model, tied ones under each name, with its bare name first."""
        if self.known is not None:
            return self.known
        found: dict[str, WatchedTensor] = {}
        for owner, module in self.modules.items():
            if not (module._parameters or module._buffers):
                continue
            # parametrize keeps a layer's state one level down
            layer = f".{owner}".partition(".parametrizations.")[0].removeprefix(".")
            prefix, bare = join(owner, ""), join(self.bare[owner], "")
            for kind, name, tensor in own_tensors(module):
                full = prefix + name
                key = full if bare is prefix or bare + name in found else bare + name
                found[key] = WatchedTensor(full, layer, kind, tensor)
        return TensorTable.from_mapping(found)


class ModelTree:
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
        enough = _MANY
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
                if len(modules) > enough:
                    enough *= 2
                    _refuse_cycles(model, "", [], set())
        self.names, self.modules, self.tensors = names, modules, tensors
        self.kinds: list[type] = [*map(type, modules), *map(type, tensors)]

    def is_like(self, other: ModelTree) -> bool:
        """Tell whether the same objects hold the same names."""
        return (
            self.names == other.names
            and all(map(is_, self.modules, other.modules))
            and all(map(is_, self.tensors, other.tensors))
            and self.kinds == other.kinds
        )


def _refuse_cycles(module: nn.Module, name: str, above: list[nn.Module], known: set[int]) -> None:
    """Refuse a module that is below itself: it has no end of names."""
    if any(each is module for each in above):
        raise GateError(
            f"{name!r} ({type(module).__name__}) holds itself by way of a child: keep a reference "
            "to a parent outside of the modules, e.g. in a tuple"
        )
    if id(module) not in known:
        for child, below in module._modules.items():
            if below is not None:
                _refuse_cycles(below, join(name, child), [*above, module], known)
        known.add(id(module))


_held_by = attrgetter("_parameters", "_buffers", "_modules")


def named_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and all below it, under every name, as torch's method unless overridden."""
    yield name, module
    for child, below in module._modules.items():
        if below is not None:
            yield from named_modules(below, join(name, child))


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


def join(parent: str, child: str) -> str:
    """Return the qualified name of what a module calls by a name; the model's own is empty."""
    return f"{parent}.{child}" if parent else child


def covers(pattern: str, *names: str) -> bool:
    """Tell whether a pattern is one of these names, or the name of one of their parents."""
    if not _WILDCARDS.intersection(pattern):
        below = f"{pattern}."
        return not pattern or any(name == pattern or name.startswith(below) for name in names)
    plain = pattern.replace("[", "[[]")  # to fnmatch brackets are special, in names they are not
    return any(fnmatchcase(name, plain) or fnmatchcase(name, f"{plain}.*") for name in names)
