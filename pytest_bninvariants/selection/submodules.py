"""Find modules, but no tensors, by name."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from pytest_bninvariants.diagnosis.did_you_mean import did_you_mean_name
from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.selection.model_names import ModelNames


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's current modules by their names without wrapper prefixes."""
    return ModelNames.from_model(model).by_bare_name


def submodules(model: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules that patterns match, by bare name; without patterns, the model itself.

    Raises:
        GateError: if a pattern is not a string, or matches no module.
    """
    names = ModelNames.from_model(model)
    modules = names.by_bare_name | {"": model}
    matches: dict[str, nn.Module] = {}
    for pattern in tuple(patterns) or ("",):
        if not isinstance(pattern, str):
            raise GateError(f"pass modules by qualified name; got {describe(pattern)}")
        escaped = names.strip_wrappers(pattern).replace("[", "[[]")
        matching = [name for name in modules if fnmatchcase(name, escaped)]
        if not matching:
            meant = did_you_mean_name(pattern, filter(None, modules))
            raise GateError(f"{pattern!r} matches no module in the model{meant}")
        matches |= {name: modules[name] for name in matching}
    return matches
