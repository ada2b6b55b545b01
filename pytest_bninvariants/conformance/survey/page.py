"""docs/public-layers/, from the list of public layers and the results of a run."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Iterator, Sequence

import torch

from pytest_bninvariants.conformance.survey.entries import Judgement
from pytest_bninvariants.conformance.survey.run import BrokenLaw, SurveyedLayer

_INTRODUCTION = """\
# Public norm layers under the laws

What the [laws of BatchNorm](../conformance-laws.md) say of norm layers that packages publish, with
the versions that are named. Each deviation was checked by hand, with torch alone, and is one of:

- **on purpose**: the layer's documentation or code says so, or its constructor;
- **undocumented**: it may be wanted, and nothing says so;
- **fault**: it contradicts the layer's documentation, or there is no use for it;
- **torch's own**: a function of torch that the layer calls does it, see
  [what torch itself fails](../torch-deviations.md).

A law that says nothing of a layer, as declared, is counted neither as held nor as broken.
"""
_HOW = """\
A run on {examples} cases a law wrote these pages, on the CPU, with torch {torch} and Python
{python}:

```sh
pip install 'pytest-bninvariants[survey]'
python -m pytest_bninvariants.conformance.survey --effort={examples} --write docs/public-layers
```

The list of layers is `pytest_bninvariants/conformance/survey/public_layers.py`;
[how to add one](../conformance.md#the-survey-of-public-layers).
"""
_TITLE = "# Deviations of "
_PACKAGE = """\
Each layer's deviations from the [laws of BatchNorm](../conformance-laws.md), each with the smallest
case that shows it. [The survey](index.md) explains the terms.
"""
_NOT_SURVEYED = """\
## Not surveyed

- `torch.ao.nn.quantized.BatchNorm2d` takes and gives 8-bit values, and the bounds are for floats.
- `torch.ao.nn.intrinsic.qat.ConvBn2d` has a convolution inside, whose rounding no bound has.
- `torch.nn.InstanceNorm2d` normalises each sample by itself: another law, and not a deviation.
- What `torch.compile` makes of a layer is the law `compile`, which each layer above is held to.
"""


def render_pages(results: Sequence[SurveyedLayer], examples: int) -> dict[str, str]:
    """Return the pages by file name: the table, and one for each package with deviations.

    Args:
        results: of all layers, none of them missing.
        examples: the number of cases for each law.
    """
    how = _HOW.format(
        examples=examples,
        torch=torch.__version__.partition("+")[0],
        python=platform.python_version(),
    )
    table = "\n".join(_table(results)) + "\n"
    pages = {"index.md": "\n".join([_INTRODUCTION, how, table, _NOT_SURVEYED])}
    packages = dict.fromkeys(each.layer.package for each in results if each.broken)
    for package in packages:
        broken = [each for each in results if each.broken and each.layer.package == package]
        sections = ["\n".join(_section(each)) + "\n" for each in broken]
        title = f"{_TITLE}{package}\n"
        pages[_file_name(package)] = "\n".join([title, _PACKAGE, *sections])
    return pages


def is_of_a_package(page: str) -> bool:
    """Return whether a page's text is one that `render_pages` made for a package."""
    return page.startswith(_TITLE)


def _file_name(package: str) -> str:
    return f"{package}.md"


def _table(results: Iterable[SurveyedLayer]) -> Iterator[str]:
    yield "| class | version | laws held | on cases | laws broken | why |"
    yield "|---|---|---|---|---|---|"
    for each in results:
        layer = each.layer
        verdicts = ", ".join(dict.fromkeys(judgement.verdict for judgement in layer.judgements))
        target = f"{_file_name(layer.package)}#{_anchor(layer.name)}"
        name = f"[`{layer.name}`]({target})" if each.broken else f"`{layer.name}`"
        counts = f"{len(each.held)} | {each.cases:,} | {len(each.broken) or 'none'}"
        yield f"| {name} | {layer.package} {each.version} | {counts} | {verdicts} |"


def _anchor(name: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return name.lower().replace(".", "")


def _section(result: SurveyedLayer) -> Iterator[str]:
    layer = result.layer
    yield f"## {layer.name}"
    yield ""
    yield f"{layer.package} {result.version}" + (f", {layer.note}" if layer.note else "") + "."
    for judgement in layer.judgements:
        broken = [each for each in result.broken if judgement.covers(each.law)]
        yield ""
        yield from _deviation(judgement, broken)


def _deviation(judgement: Judgement, broken: Sequence[BrokenLaw]) -> Iterator[str]:
    laws = ", ".join(f"`{each.law}`" for each in broken)
    yield f"**{judgement.verdict}**: {judgement.why} Broken: {laws}."
    first = min(broken, key=lambda each: judgement.laws.split().index(each.law))
    yield ""
    yield f"The smallest case, of `{first.law}`: {first.headline}"
    yield ""
    yield from (
        f"    {line}".rstrip() for line in re.sub(r"\n{3,}", "\n\n", first.snippet).split("\n")
    )
