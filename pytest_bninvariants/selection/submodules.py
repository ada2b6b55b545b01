"""Find modules by name, where modules alone are meant and no tensors."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from pytest_bninvariants.diagnosis.did_you_mean import did_you_mean_name
from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.selection.model_names import ModelNames


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's modules by their names without wrapper prefixes, as they are now."""
    return ModelNames.from_model(model).by_bare_name


def submodules(model: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules that patterns name, without wrapper prefixes; the model itself for none.

    Raises:
        GateError: if a pattern is not a string, or matches no module.
    """
    names = ModelNames.from_model(model)
    modules = names.by_bare_name | {"": model}
    found: dict[str, nn.Module] = {}
    for pattern in tuple(patterns) or ("",):
        if not isinstance(pattern, str):
            raise GateError(f"modules are given by qualified name; got {describe(pattern)}")
        plain = names.spelled(pattern).replace("[", "[[]")
        matching = [name for name in modules if fnmatchcase(name, plain)]
        if not matching:
            meant = did_you_mean_name(pattern, filter(None, modules))
            raise GateError(f"{pattern!r} matches no module in the model{meant}")
        found |= {name: modules[name] for name in matching}
    return found
