"""Each public name shows in its docstring how it is used, and what is shown there runs."""

from __future__ import annotations

import doctest
import inspect
from types import FunctionType

import pytest
import torch

import pytest_bninvariants
from pytest_bninvariants.batchnorm import strategies

PUBLIC = {
    **{name: getattr(pytest_bninvariants, name) for name in pytest_bninvariants.__all__},
    **{
        f"strategies.{name}": value
        for name, value in vars(strategies).items()
        if isinstance(value, FunctionType)
        and value.__module__ == strategies.__name__
        and not name.startswith("_")
    },
}


def example_of(name: str) -> doctest.DocTest:
    """Return the lines under the heading `Examples:` of a public name's docstring."""
    _, heading, example = (inspect.getdoc(PUBLIC[name]) or "").partition("\nExamples:\n")
    assert heading, f"the docstring of {name} has no 'Examples:'"
    return doctest.DocTestParser().get_doctest(example, {}, name, None, None)


@pytest.mark.filterwarnings("default::pytest_bninvariants.InvariantHazard")  # one shows it
@pytest.mark.parametrize("name", PUBLIC)
def test_the_docstring_has_an_example_that_runs(name: str, unreported: dict[int, str]) -> None:
    example = example_of(name)
    assert example.examples, f"the example of {name} has no line that begins with >>>"
    torch.manual_seed(0)
    told: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=told.append)
    assert not told, "".join(told)
    unreported.clear()  # one example makes a guard that it never enters
