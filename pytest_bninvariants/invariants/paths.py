"""Paths as people read them."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


def relative(file: str) -> str:
    """Return a path as seen from the current folder, if it is below that."""
    return _below(file, os.getcwd())


@lru_cache(maxsize=1024)
def _below(file: str, here: str) -> str:
    path = Path(file)
    return str(path.relative_to(here)) if path.is_relative_to(here) else file
