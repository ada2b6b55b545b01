"""Paths as people read them."""

from __future__ import annotations

from pathlib import Path


def relative(file: str) -> str:
    """Return a path as seen from the current folder, if it is below that."""
    path = Path(file)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file
