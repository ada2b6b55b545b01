"""A model's modules and tensors by name."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from torch import nn

from pytest_bninvariants.selection.tensor_table import TensorTable, WatchedTensor
from pytest_bninvariants.selection.walk import join, own_tensors

_WRAPPER_CHILDREN = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
_WILDCARDS = frozenset("*?")


@dataclass(frozen=True)
class ModelNames:
    """A model's modules by name, with and without the prefixes that wrappers put into names.

    Args:
        modules: all modules, by qualified name.
        bare: those names without wrapper prefixes.
        known: all of its tensors by key, if they were read before.
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

    @property
    def by_bare_name(self) -> dict[str, nn.Module]:
        """Return the modules by bare name: what is wrapped, and not its wrapper."""
        return {self.bare[name]: module for name, module in self.modules.items()}

    def spelled(self, pattern: str) -> str:
        """Return a pattern, without wrapper prefixes if it matches nothing as it is."""
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
        """Return all tensors by their bare names; a tied one is there under each of its names."""
        if self.known is not None:
            return self.known
        found: dict[str, WatchedTensor] = {}
        for owner, module in self.modules.items():
            if not (module._parameters or module._buffers):
                continue
            # parametrize keeps a layer's state one level down, in ParametrizationLists: see
            # https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.parametrize.register_parametrization.html
            layer = f".{owner}".partition(".parametrizations.")[0].removeprefix(".")
            prefix, bare = join(owner, ""), join(self.bare[owner], "")
            for kind, name, tensor in own_tensors(module):
                full = prefix + name
                key = full if bare is prefix or bare + name in found else bare + name
                found[key] = WatchedTensor(full, layer, kind, tensor)
        return TensorTable.from_mapping(found)


def covers(pattern: str, *names: str) -> bool:
    """Tell whether a pattern is one of these names, or the name of one of their parents."""
    if not _WILDCARDS.intersection(pattern):
        below = f"{pattern}."
        return not pattern or any(name == pattern or name.startswith(below) for name in names)
    plain = pattern.replace("[", "[[]")  # to fnmatch brackets are special, in names they are not
    return any(fnmatchcase(name, plain) or fnmatchcase(name, f"{plain}.*") for name in names)
