"""A model's modules and tensors by name."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from torch import nn

from pytest_bninvariants.selection.bn_layers import is_bn_layer
from pytest_bninvariants.selection.tensor_table import TensorTable, WatchedTensor
from pytest_bninvariants.selection.walk import join, own_tensors
from pytest_bninvariants.torch_internals.sharding import stored_parameters

_WRAPPER_CHILDREN = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
_WILDCARDS = frozenset("*?")


@dataclass(frozen=True)
class ModelNames:
    """A model's modules by name, with and without the prefixes that wrappers put into names.

    Args:
        modules: all modules, by qualified name.
        bare: the bare name, without wrapper prefixes, of each qualified name.
        known_tensors: all of its tensors by key, if they have been read already.
    """

    modules: dict[str, nn.Module]
    bare: dict[str, str]
    known_tensors: TensorTable | None = None

    @classmethod
    def from_model(cls, model: nn.Module) -> ModelNames:
        """Read the names off a model."""
        names = cls({}, {})
        names._add(model, "", "")
        return names

    def _add(self, module: nn.Module, name: str, bare: str) -> None:
        self.modules[name], self.bare[name] = module, bare
        children = module._modules
        is_only_child = len(children) == 1
        for child_name, child in children.items():
            if child is not None:
                is_wrapped = is_only_child and child_name in _WRAPPER_CHILDREN
                is_wrapped = is_wrapped and not is_bn_layer(module)  # then both are judged
                child_bare = bare if is_wrapped else join(bare, child_name)
                self._add(child, join(name, child_name), child_bare)

    @property
    def by_bare_name(self) -> dict[str, nn.Module]:
        """Return the modules by bare name: of a wrapper and its module, the module."""
        return {self.bare[name]: module for name, module in self.modules.items()}

    def strip_wrappers(self, pattern: str) -> str:
        """Return a pattern, without wrapper prefixes if it matches nothing with them."""
        if self.matches(pattern):
            return pattern
        return ".".join(part for part in pattern.split(".") if part not in _WRAPPER_CHILDREN)

    def matches(self, pattern: str) -> bool:
        """Tell whether a pattern covers any module or tensor, by its bare or its full name."""
        if any(covers(pattern, bare, name) for name, bare in self.bare.items()):
            return True
        return any(covers(pattern, key, watched.name) for key, watched in self.tensors.items())

    @cached_property
    def tensors(self) -> TensorTable:
        """Return all tensors by their bare names; a tied one has an entry for each of its names."""
        if self.known_tensors is not None:
            return self.known_tensors
        tensors: dict[str, WatchedTensor] = {}
        stored = stored_parameters(self.modules.values())
        for owner, module in self.modules.items():
            if not (module._parameters or module._buffers):
                continue
            # parametrize keeps a layer's state one level down, in ParametrizationLists: see
            # https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.parametrize.register_parametrization.html
            layer = f".{owner}".partition(".parametrizations.")[0].removeprefix(".")
            prefix, bare = join(owner, ""), join(self.bare[owner], "")
            for kind, name, tensor in own_tensors(module):
                full = prefix + name
                if stored:
                    tensor = stored.get((id(module), name), tensor)
                key = full if bare is prefix or bare + name in tensors else bare + name
                tensors[key] = WatchedTensor(full, layer, kind, tensor)
        return TensorTable.from_mapping(tensors)


def covers(pattern: str, *names: str) -> bool:
    """Tell whether a pattern matches one of these names, or a parent of one."""
    if not _WILDCARDS.intersection(pattern):
        parent = f"{pattern}."
        return not pattern or any(name == pattern or name.startswith(parent) for name in names)
    escaped = pattern.replace("[", "[[]")  # brackets are special in fnmatch, but not in names
    return any(fnmatchcase(name, escaped) or fnmatchcase(name, f"{escaped}.*") for name in names)
