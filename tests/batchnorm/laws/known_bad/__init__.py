"""Layers with one defect each: every class here that `@breaks` decorates is one of them."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from tests.batchnorm.laws.known_bad.registry import KNOWN_BAD

for module in pkgutil.iter_modules(__path__, f"{__name__}."):
    import_module(module.name)

__all__ = ["KNOWN_BAD"]
