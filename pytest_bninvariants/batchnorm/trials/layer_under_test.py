"""The layer under test: the factory that makes it, and the ranks of its inputs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from pytest_bninvariants.batchnorm.cases import DEFAULTS
from pytest_bninvariants.batchnorm.trials.declaration import Declaration
from pytest_bninvariants.batchnorm.trials.renamed_state import rename_state, renaming_source
from pytest_bninvariants.errors import describe

RANKS = {"0d": (2,), "1d": (2, 3), "2d": (4,), "3d": (5,), "nd": (2, 3, 4, 5)}
_TRIED_SETTINGS: Mapping[str, Any] = {
    "eps": 0.25,
    "momentum": 0.5,
    "affine": False,
    "track_running_stats": False,
}
CHANNELS = 3  # of the layers that are made to look at
HOW_TO_ADAPT = "write an adapter: docs/conformance.md"


@dataclass(frozen=True, slots=True)
class LayerUnderTest:
    """A layer under test.

    Args:
        factory: its class, or any callable that makes it.
        dims: the ranks of inputs that it takes.
        keywords: arguments of the factory besides nn.BatchNorm's.
        label: its name in test ids.
        declaration: where it is another than nn.BatchNorm on purpose.
        fixed: settings that are declared and that its constructor does not take, or takes with
            nn.BatchNorm's default alone, since else there would be nothing to declare.
        base: the class whose state the factory renames; None: it renames nothing.
    """

    factory: Callable[..., Any]
    dims: tuple[int, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    declaration: Declaration = field(default_factory=Declaration)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    base: type[Any] | None = None

    @classmethod
    def from_factory(
        cls,
        factory: Callable[..., Any],
        *,
        rank: str | None = None,
        keywords: dict[str, Any] | None = None,
        declared: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> LayerUnderTest:
        """Return the layer that a factory makes; if no rank is given, all ranks are tried out.

        Raises:
            ValueError: if the rank or what is declared is unknown, the factory makes no layer from
                its arguments, or the layer takes inputs of no rank.
            TypeError: if the factory cannot be called, or is a layer itself.
        """
        if not callable(factory):
            raise TypeError(f"{factory!r} is not a class that makes a layer")
        if isinstance(factory, nn.Module):
            raise TypeError(
                f"{describe(factory)} is a layer itself: give its class, "
                "or a function that makes it"
            )
        if rank is not None and rank not in RANKS:
            raise ValueError(f"rank {rank!r} is unknown; accepted: {', '.join(RANKS)}")
        subject = cls(
            factory,
            RANKS[rank] if rank else _declared_ranks(factory),
            keywords or {},
            getattr(factory, "__name__", type(factory).__name__),
            Declaration.from_keywords(declared or {}),
        )
        subject._check_makes_a_layer()
        if subject.declaration.state:
            subject = subject._with_renamed_state()
        given = subject.declaration.settings
        fixed = {
            name: value
            for name, value in given.items()
            if value == DEFAULTS[name] or not subject.accepts(name)
        }
        subject = replace(subject, fixed=fixed)
        return subject if subject.dims else replace(subject, dims=subject._find_ranks(device))

    def labelled(self, label: str) -> LayerUnderTest:
        """Return the same layer under another name in test ids."""
        return replace(self, label=label)

    @property
    def counts(self) -> bool:
        """Tell whether it has a counter, as far as is declared."""
        return self.declaration.state.get("num_batches_tracked", "") is not None

    @property
    def ranks(self) -> int:
        """Return over how many processes it is tried; 1 if it does not synchronise."""
        if self.declaration.ranks is not None:
            return self.declaration.ranks
        mro = getattr(self.base or self.factory, "__mro__", (self.factory,))
        return 2 if any("sync" in getattr(c, "__name__", "").lower() for c in mro) else 1

    @property
    def name(self) -> str:
        """Return the name by which a snippet calls the factory."""
        name = str(getattr(self.factory, "__name__", ""))
        return name if name.isidentifier() else "make_layer"

    def _check_makes_a_layer(self) -> None:
        """Make a layer once, so that a wrong argument does not break every law."""
        call = self.call(CHANNELS)
        try:
            layer = self.make()
        except Exception as error:  # a user's class may raise anything
            news = f"{call} raised {type(error).__name__}: {error}"
            raise ValueError(f"{news}; {self._how_to_make(error)}") from error
        if not isinstance(layer, nn.Module):
            raise ValueError(f"{call} makes no torch.nn.Module, but {describe(layer)}")
        lazy = [p for p in layer.parameters() if is_lazy(p)]
        if lazy or isinstance(layer, LazyModuleMixin):
            became = getattr(layer, "cls_to_become", None)
            instead = f"{became.__module__}:{became.__name__}" if became else "what it turns into"
            raise ValueError(
                f"{self.name} is lazy: its state is uninitialized until its first batch; "
                f"give {instead}"
            )

    def _how_to_make(self, error: Exception) -> str:
        """Return how to go on when the laws' way of making a layer fails."""
        missing = _required_names(self.factory)[1:] if isinstance(error, TypeError) else []
        missing = [name for name in missing if name not in self.keywords]
        if missing:
            given = "".join(f"{name}=..., " for name in missing)[:-2]
            return (
                f"pass what it needs besides channels, as in {self.name}({given}), or "
                f"{HOW_TO_ADAPT}"
            )
        return f"if it takes no number of channels first, {HOW_TO_ADAPT}"

    def _with_renamed_state(self) -> LayerUnderTest:
        """Return the layer with its state under nn.BatchNorm's names."""
        if not isinstance(self.factory, type):
            raise ValueError(
                f"{self.name} is not a class, so you cannot declare where its state is"
            )
        renamed = rename_state(self.factory, self.declaration.state)
        return replace(self, factory=renamed, base=self.factory)

    def make(self, **settings: Any) -> Any:
        """Return a layer of 3 channels."""
        return self.factory(CHANNELS, **settings | self.keywords)

    def _find_ranks(self, device: str) -> tuple[int, ...]:
        """Return the ranks of which the layer in eval gives an output of the input's shape."""
        taken, refusal = [], ""
        for dims in RANKS["nd"]:
            try:
                layer = self.make().to(device).eval()
                x = torch.ones(2, CHANNELS, *[2] * (dims - 2), device=device)
                with torch.no_grad():
                    y = layer(x)
            except Exception as error:  # layers refuse ranks in many ways
                refusal = f"{type(error).__name__}: {error}"
            else:
                if getattr(y, "shape", None) == x.shape:
                    taken.append(dims)
                else:
                    refusal = f"{tuple(x.shape)} comes out as {describe(y)}"
        if not taken:
            raise ValueError(f"it takes no input of 2 to 5 dimensions: {refusal}")
        return tuple(taken)

    def accepts(self, setting: str) -> bool:
        """Tell whether a layer can be made with a setting.

        A constructor that fails over its value accepts it: to say so is for the laws.
        """
        try:
            self.make(**{setting: _TRIED_SETTINGS[setting]})
        except TypeError:
            return self.takes(setting)
        except Exception:  # a user's class may raise anything
            return True
        return True

    def takes(self, keyword: str) -> bool:
        """Tell whether its signature has a keyword, or passes it on to a base class that does."""
        constructors = [
            c.__init__ for c in getattr(self.factory, "__mro__", ()) if "__init__" in vars(c)
        ]
        for each in constructors or [self.factory]:
            try:
                parameters = inspect.signature(each).parameters
            except (TypeError, ValueError):  # some callables have no signature
                return False
            if keyword in parameters:
                return True
            if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                return False
        return False

    def call(self, *positional: Any, **named: Any) -> str:
        """Return code that makes it from these arguments and its keywords."""
        arguments = [repr(each) for each in positional]
        arguments += [f"{name}={each!r}" for name, each in (named | self.keywords).items()]
        return f"{self.name}({', '.join(arguments)})"

    def import_line(self) -> str:
        """Return a line of code that imports it."""
        factory = self.base or self.factory
        name = self.name if self.base is None else self.base.__name__
        module = getattr(factory, "__module__", None)
        outer = str(getattr(factory, "__qualname__", name)).split(".")
        if module in (None, "builtins", "functools") or "<locals>" in outer:
            return f"# {name} is yours: {factory!r}"
        tail = "" if outer == [name] else f"\n{name} = {'.'.join(outer)}"
        if self.base is not None:
            tail += "\n".join(renaming_source(name, self.declaration.state))
        return f"from {module} import {outer[0]}{tail}"


def _required_names(factory: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments without a default; none if they are unknown."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables have no signature
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


def _declared_ranks(factory: Callable[..., Any]) -> tuple[int, ...]:
    """Return the ranks that the class's name declares, or the name of a class that it extends."""
    for each in getattr(factory, "__mro__", (factory,)):
        match = re.search(r"([123])d$", getattr(each, "__name__", ""))
        if match:
            return RANKS[f"{match[1]}d"]
    return ()
