"""The layer under test: the factory that makes it, and the ranks of its inputs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from pytest_bninvariants.errors import describe

RANKS = {"1d": (2, 3), "2d": (4,), "3d": (5,), "nd": (2, 3, 4, 5)}
_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class LayerUnderTest:
    """A layer under test.

    Args:
        factory: its class, or any callable that makes it.
        dims: the ranks of inputs that it takes.
        keywords: arguments of the factory besides nn.BatchNorm's.
        label: its name in test ids.
    """

    factory: Callable[..., Any]
    dims: tuple[int, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @classmethod
    def from_factory(
        cls,
        factory: Callable[..., Any],
        *,
        rank: str | None = None,
        keywords: dict[str, Any] | None = None,
        device: str = "cpu",
    ) -> LayerUnderTest:
        """Return the layer that a factory makes; if no rank is given, all ranks are tried out.

        Raises:
            ValueError: if the rank is unknown, the factory makes no layer from its arguments, or
                the layer takes inputs of no rank.
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
        given = keywords or {}
        label = getattr(factory, "__name__", type(factory).__name__)
        subject = cls(factory, RANKS[rank] if rank else _declared_ranks(factory), given, label)
        subject._check_makes_a_layer()
        return subject if subject.dims else replace(subject, dims=subject._find_ranks(device))

    def labelled(self, label: str) -> LayerUnderTest:
        """Return the same layer under another name in test ids."""
        return replace(self, label=label)

    @property
    def name(self) -> str:
        """Return the name by which a snippet calls the factory."""
        name = str(getattr(self.factory, "__name__", ""))
        return name if name.isidentifier() else "make_layer"

    def _check_makes_a_layer(self) -> None:
        """Make a layer once, so that a wrong argument does not break every law."""
        call = self.call(_CHANNELS)
        try:
            layer = self._make()
        except Exception as error:  # a user's class may raise anything
            raise ValueError(f"{call} raised {type(error).__name__}: {error}") from error
        if not isinstance(layer, nn.Module):
            raise ValueError(f"{call} makes no torch.nn.Module, but {describe(layer)}")

    def _make(self) -> Any:
        return self.factory(_CHANNELS, **self.keywords)

    def _find_ranks(self, device: str) -> tuple[int, ...]:
        """Return the ranks that the layer takes in eval."""
        taken, refusal = [], ""
        for dims in RANKS["nd"]:
            try:
                layer = self._make().to(device).eval()
                with torch.no_grad():
                    layer(torch.ones(2, _CHANNELS, *[2] * (dims - 2), device=device))
            except Exception as error:  # layers refuse ranks in many ways
                refusal = f"{type(error).__name__}: {error}"
            else:
                taken.append(dims)
        if not taken:
            raise ValueError(f"it takes no input of 2 to 5 dimensions: {refusal}")
        return tuple(taken)

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
        module = getattr(self.factory, "__module__", None)
        outer = str(getattr(self.factory, "__qualname__", self.name)).split(".")
        if module in (None, "builtins", "functools") or "<locals>" in outer:
            return f"# {self.name} is yours: {self.factory!r}"
        tail = "" if outer == [self.name] else f"\n{self.name} = {'.'.join(outer)}"
        return f"from {module} import {outer[0]}{tail}"


def _declared_ranks(factory: Callable[..., Any]) -> tuple[int, ...]:
    """Return the ranks that the class's name declares, or the name of a class that it extends."""
    for each in getattr(factory, "__mro__", (factory,)):
        match = re.search(r"([123])d$", getattr(each, "__name__", ""))
        if match:
            return RANKS[f"{match[1]}d"]
    return ()
