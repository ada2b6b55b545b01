"""What every BatchNorm must satisfy, a function a law.

A law's docstring states it. It builds a layer in a trial, runs lines of code on it, and holds what
it sees against the reference or against what it saw before.
"""

from __future__ import annotations

from pytest_bninvariants.batchnorm.laws import (  # noqa: F401, which puts them into LAWS
    calls,
    gradients,
    inputs,
    saving,
    sizes,
    state,
    switches,
    values,
)
from pytest_bninvariants.batchnorm.laws.registry import LAWS, Law, choose_laws

__all__ = ["LAWS", "Law", "choose_laws"]
