"""Which modules and which tensor names a guard watches."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from pytest_bninvariants.errors import GateError, shown
from pytest_bninvariants.invariants import registry

Kind = Literal["parameter", "buffer", "output"]
STATISTICS = ("running_mean", "running_var")
BN_STATE = (*STATISTICS, "num_batches_tracked")
_WRAPPER_CHILDREN = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
_WILDCARDS = frozenset("*?")
_LISTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a guard is asked to watch.

    Args:
        modules: qualified names of modules or tensors; a name covers its subtree, `*` and `?` work
            as in a shell (and cross dots). Empty: the whole model.
        exclude: names, of the same sort, that are left out.
        parameters: watch parameters.
        buffers: watch buffers, and how BN layers normalise.
        allow_batch_stats: let BN layers normalise with batch statistics.
        bn_only: watch only BN layers.

    Raises:
        GateError: a value is of the wrong type, or nothing is left to watch.
    """

    modules: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    parameters: bool = True
    buffers: bool = True
    allow_batch_stats: bool = False
    bn_only: bool = False

    def __post_init__(self) -> None:
        for pattern in self.modules:
            if not isinstance(pattern, str):
                raise GateError(
                    "modules are given by qualified name, such as 'backbone.bn1'; "
                    f"got {shown(pattern)}"
                )
        for pattern in self.exclude:
            if not isinstance(pattern, str):
                raise GateError(f"exclude= takes a name or several names; got {shown(pattern)}")
        for option in ("parameters", "buffers", "allow_batch_stats"):
            value = getattr(self, option)
            if not isinstance(value, bool):
                raise GateError(f"{option}= takes True or False; got {shown(value)}")
        if not (self.parameters or self.buffers):
            raise GateError("parameters=False and buffers=False together leave nothing to watch")

    @property
    def judges_normalisation(self) -> bool:
        """Tell whether normalising with batch statistics is a violation here."""
        return self.buffers and not self.allow_batch_stats


def names_of(value: object, option: str = "exclude") -> tuple[str, ...]:
    """Return an option's value as a tuple: a name, or several names.

    Raises:
        GateError: it is neither.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Collection):  # no iterator: a marker's is used up by the first test
        return tuple(value)
    raise GateError(f"{option}= takes a name or several names; got {shown(value)}")


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
    """A model's modules by name, with and without the prefixes that wrappers put into names."""

    modules: dict[str, nn.Module]
    bare: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> Names:
        """Read the names off a model."""
        modules = dict(named_modules(model))
        bare = {"": ""}
        for name in modules:
            if name:
                parent, _, child = name.rpartition(".")
                wrapper = child in _WRAPPER_CHILDREN and len(modules[parent]._modules) == 1
                bare[name] = bare[parent] if wrapper else _join(bare[parent], child)
        return cls(modules, bare)

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
        found: dict[str, Watched] = {}
        for owner, module in self.modules.items():
            layer = owner.partition(".parametrizations.")[0]  # keeps a layer's state one level down
            prefix = f"{owner}." if owner else ""
            bare = f"{self.bare[owner]}." if self.bare[owner] else ""
            for kind, name, tensor in own_tensors(module):
                key = bare + name
                full = key if bare == prefix else prefix + name
                if key in found:
                    key = full  # a wrapper's own buffer may share a bare name
                found[key] = Watched(full, layer, kind, tensor)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The watched part of a model; its mappings are keyed by the name without wrapper prefixes.

    Args:
        names: the model's names.
        tensors: the watched tensors.
        bn_layers: the watched BN layers, which must keep `eps` and use stored statistics.
        bn_names: the qualified names of all BN layers.
        modules: every module in the watched subtrees; one of them must run.
        layout: which objects hold the model's names.
    """

    names: Names
    tensors: Mapping[str, Watched]
    bn_layers: Mapping[str, nn.Module]
    bn_names: Mapping[str, str]
    modules: Mapping[str, nn.Module]
    layout: Sequence[object]


def layout_of(module: nn.Module) -> list[object]:
    """Return which objects hold which names: equal, while they live, as long as all of them do."""
    found: list[object] = [id(module), id(type(module))]
    for held in (module._parameters, module._buffers, module._modules):
        if held:
            found += held.keys()
            found += map(id, held.values())
        found.append(None)
    for below in module._modules.values():
        if below is not None:
            found += layout_of(below)
    return found


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


def is_bn_layer(module: nn.Module) -> bool:
    """Tell whether a module is a BN layer: by family, by its buffers, or by `bn_layer_types`."""
    if isinstance(module, _InstanceNorm):
        return has_stored_statistics(module)
    buffers = module._buffers
    if isinstance(module, _NormBase) or ("running_mean" in buffers and "running_var" in buffers):
        return True
    return registry.names(type(module))


def has_stored_statistics(module: nn.Module) -> bool:
    """Tell whether a module holds running statistics as buffers."""
    buffers = module._buffers
    return all(name in buffers and buffers[name] is not None for name in STATISTICS)


def select(model: nn.Module, scope: Scope, *, complain: bool = True) -> Selection:
    """Find what a scope covers in a model.

    Args:
        model: the model.
        scope: what is to be watched.
        complain: raise where a pattern finds nothing; after the step names may be gone.

    Raises:
        GateError: a pattern matches nothing that can be watched, or everything is excluded.
    """
    layout = layout_of(model)
    names = Names.of(model)
    modules = {names.bare[name]: module for name, module in names.modules.items()}
    of_bn = [name for name, module in names.modules.items() if is_bn_layer(module)]
    state_of_bn = _state_owners(names, of_bn) if scope.bn_only else names.modules.keys()
    kinds = {"parameter"} if scope.parameters else set()
    kinds |= {"buffer"} if scope.buffers else set()
    candidates = {
        key: watched
        for key, watched in names.tensors.items()
        if watched.kind in kinds and watched.layer in state_of_bn
    }
    bn_names: dict[str, str] = {}
    for name in of_bn:
        bn_names.setdefault(names.bare[name], name)  # the outer one, where a wrapper is one too
    bn_layers = {key: names.modules[name] for key, name in bn_names.items()}

    def matches(pattern: str) -> tuple[set[str], set[str]]:
        if not pattern:
            return set(candidates), set(bn_layers if scope.bn_only else modules)
        spelled = names.spelled(pattern)
        tensors = {key for key, w in candidates.items() if covers(spelled, key, w.name)}
        below = {bare for name, bare in names.bare.items() if covers(spelled, bare, name)}
        return tensors, below & bn_layers.keys() if scope.bn_only else below

    def watches(tensors: set[str], below: set[str]) -> bool:
        return bool(tensors or (scope.judges_normalisation and below & bn_layers.keys()))

    tensors: set[str] = set()
    below: set[str] = set()
    for pattern in scope.modules or ("",):
        found = matches(pattern)
        if complain and not watches(*found):
            raise GateError(_nothing_to_watch(pattern, scope, names, bn_layers, candidates))
        tensors |= found[0]
        below |= found[1]
    for pattern in scope.exclude:
        left_out = matches(pattern)
        if complain and not (left_out[0] & tensors or left_out[1] & below):
            there = {names.bare[w.layer] for key, w in candidates.items() if key in tensors} - {""}
            near = _near(pattern, sorted(there))
            meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise GateError(f"exclude={pattern!r} matches nothing that is watched{meant}")
        tensors -= left_out[0]
        below -= left_out[1]
    if complain and not watches(tensors, below):
        raise GateError(f"exclude={list(scope.exclude)} leaves nothing to watch")
    owners = {names.bare[candidates[key].layer] for key in tensors}
    return Selection(
        names=names,
        layout=layout,
        tensors={key: watched for key, watched in candidates.items() if key in tensors},
        bn_layers={key: module for key, module in bn_layers.items() if key in below},
        bn_names=bn_names,
        modules={
            key: module
            for key, module in modules.items()
            if key in owners or (key in below and (key in bn_layers or not scope.bn_only))
        },
    )


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that hold each name, without wrapper prefixes, at the moment."""
    names = Names.of(model)
    return {names.bare[name]: module for name, module in names.modules.items()}


def submodules(model: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules that patterns name, without wrapper prefixes; the model itself for none.

    Raises:
        GateError: a pattern is no name, or matches no module.
    """
    layers = layers_of(model) | {"": model}
    found: dict[str, nn.Module] = {}
    for pattern in tuple(patterns) or ("",):
        if not isinstance(pattern, str):
            raise GateError(f"modules are given by qualified name; got {shown(pattern)}")
        plain = Names.of(model).spelled(pattern).replace("[", "[[]")
        names = [name for name in layers if fnmatchcase(name, plain)]
        if not names:
            near = _near(pattern, filter(None, layers))
            meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise GateError(f"{pattern!r} matches no module in the model{meant}")
        found |= {name: layers[name] for name in names}
    return found


def _state_owners(names: Names, of_bn: Iterable[str]) -> set[str]:
    """Return the names of all modules whose own tensors are a BN layer's state.

    A layer of a type that bn_layer_types names keeps its state where only its author knows, so its
    whole subtree counts.
    """
    owners = set(of_bn)
    if registry.bn_layer_types:
        for name, module in names.modules.items():
            if registry.names(type(module)):
                owners |= {key for key, _ in named_modules(module, name)}
    return owners


def covers(pattern: str, *names: str) -> bool:
    """Tell whether a pattern is one of these names, or the name of one of their parents."""
    if not _WILDCARDS.intersection(pattern):
        below = f"{pattern}."
        return not pattern or any(name == pattern or name.startswith(below) for name in names)
    plain = pattern.replace("[", "[[]")  # to fnmatch brackets are special, in names they are not
    return any(fnmatchcase(name, plain) or fnmatchcase(name, f"{plain}.*") for name in names)


def _nothing_to_watch(
    pattern: str,
    scope: Scope,
    names: Names,
    bn_layers: Mapping[str, nn.Module],
    candidates: Mapping[str, Watched],
) -> str:
    what = _what(scope)
    spelled = names.spelled(pattern)
    exists = any(covers(spelled, bare, name) for name, bare in names.bare.items())
    exists = exists or any(covers(spelled, key, w.name) for key, w in names.tensors.items())
    if scope.bn_only and not bn_layers:
        return "the model has no BN layer: there is nothing to watch"
    if exists and not candidates:
        if scope.bn_only:
            return "the model's BN layers have no such tensors: there is nothing to watch"
        return f"the model has no {what}: there is nothing to watch"
    there = list(bn_layers) if scope.bn_only else [name for name in names.modules if name]
    problem = f"holds no {what}" if exists else "matches nothing in the model"
    near = [] if exists else _near(pattern, there)
    meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    shallow = sorted(there, key=lambda name: name.count("."))
    listed = [name for name in shallow if name not in (pattern, "")]
    if not listed:
        return f"{pattern!r} {problem}{meant}"
    kinds = "BN layers" if scope.bn_only else "modules"
    mark = "" if meant else ";"
    return f"{pattern!r} {problem}{meant}{mark} the model's {kinds} are {listing(listed)}"


def _near(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names, or names of parents, that a mistyped one may have meant."""
    known = {name: None for full in names for name in _with_parents(full)}
    lower = {name.lower(): name for name in reversed(known)}
    ends = [name for name in known if name.endswith(f".{pattern}")]
    close = difflib.get_close_matches(pattern.lower(), lower, n=3, cutoff=0.7)
    return list(dict.fromkeys([*ends, *(lower[name] for name in close)]))[:3]


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _what(scope: Scope) -> str:
    """Return what a scope watches in the singular."""
    if not scope.parameters:
        return "buffer of a BN layer" if scope.bn_only else "buffer"
    if not scope.buffers:
        return "parameter of a BN layer" if scope.bn_only else "parameter"
    return "BN layer" if scope.bn_only else "parameter or buffer"


def listing(names: list[str]) -> str:
    """Return names as a sentence has them, the first few of many."""
    shown_names = ", ".join(repr(name) for name in names[:_LISTED])
    more = len(names) - _LISTED
    return f"{shown_names} and {more} more" if more > 0 else shown_names
