"""The laws that every BatchNorm must satisfy, one function each.

A law's docstring states it. The function builds a layer in a trial, runs lines of code on it, and
compares the results with the reference, or with earlier results.

A new law is a function under `@law` in one of these files, a layer under `@breaks` in
`tests/batchnorm/laws/known_bad/` that breaks it, and a row in docs/conformance.md; tests fail until
all three are there.
"""

from __future__ import annotations

from pytest_bninvariants.batchnorm.laws import (  # noqa: F401, which puts them into LAWS
    calls,
    compiling,
    derivatives,
    gradients,
    inputs,
    saving,
    sizes,
    state,
    switches,
    values,
)
from pytest_bninvariants.batchnorm.laws.across_ranks import (  # noqa: F401
    even_shards,
    groups,
    training,
    uneven_shards,
)
from pytest_bninvariants.batchnorm.laws.registry import LAWS, Law, choose_laws

__all__ = ["LAWS", "Law", "choose_laws"]
