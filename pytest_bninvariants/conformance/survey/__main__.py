"""Run the laws on public norm layers: `python -m pytest_bninvariants.conformance.survey`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from pytest_bninvariants.batchnorm.laws import choose_laws
from pytest_bninvariants.conformance.survey.entries import PublicLayer
from pytest_bninvariants.conformance.survey.findings import unexpected_findings
from pytest_bninvariants.conformance.survey.page import is_of_a_package, render_pages
from pytest_bninvariants.conformance.survey.public_layers import PUBLIC_LAYERS
from pytest_bninvariants.conformance.survey.run import SurveyedLayer, survey_layers
from pytest_bninvariants.option_values import count_cases

_EXTRA = "pip install 'pytest-bninvariants[survey]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Survey the layers that the arguments name, and return the exit code.

    It is 0 if the results are those that the list of public layers tells, and else 1.
    """
    options = _parser().parse_args(arguments)
    try:
        examples = count_cases("--effort=", _number_or_name(options.effort))
        layers = _choose(options.layers)
        laws = _names_of_laws(options.laws)
        if options.laws and options.write:
            raise ValueError("--write goes without --laws: the pages have what all laws say")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    results = []
    for result in survey_layers(layers, laws, examples=examples, processes=options.processes):
        results.append(result)
        print(_line(result), *unexpected_findings([result], laws), sep="\n  ", flush=True)
    results.sort(key=lambda each: layers.index(each.layer))
    unexpected = len(list(unexpected_findings(results, laws)))
    return _conclude(results, unexpected, options.write, examples)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pytest_bninvariants.conformance.survey")
    parser.add_argument("layers", nargs="*", help="patterns of paths, such as 'timm.*'; all")
    parser.add_argument("--laws", action="append", default=[], help="as --bn-laws has it; all")
    parser.add_argument("--effort", default="quick", help="as --bn-examples has it")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the pages")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return parser


def _number_or_name(effort: str) -> int | str:
    return int(effort) if effort.isdecimal() else effort


def _choose(patterns: Sequence[str]) -> list[PublicLayer]:
    for pattern in patterns:
        if not any(fnmatchcase(layer.name, pattern) for layer in PUBLIC_LAYERS):
            names = ", ".join(layer.name for layer in PUBLIC_LAYERS)
            raise ValueError(f"{pattern!r} matches no layer; there are {names}")
    wanted = patterns or ["*"]
    return [each for each in PUBLIC_LAYERS if any(fnmatchcase(each.name, p) for p in wanted)]


def _names_of_laws(given: Sequence[str]) -> frozenset[str]:
    """Return the names of the laws that `--laws` chooses; without it, of all of one process."""
    patterns = [name for part in given for name in part.split(",") if name] or ["*"]
    names = frozenset(law.name for law in choose_laws(patterns) if not law.across_ranks)
    if not names:
        raise ValueError(f"--laws={','.join(given)}: these run on ranks, and a survey does not")
    return names


def _line(result: SurveyedLayer) -> str:
    if result.version is None:
        return f"{result.layer.name}: {result.layer.package} is not installed"
    told = f"{len(result.held)} laws held on {result.cases:,} cases, {len(result.broken)} did not"
    return f"{result.layer.name} ({result.layer.package} {result.version}): {told}"


def _conclude(
    results: list[SurveyedLayer], unexpected: int, folder: Path | None, examples: int
) -> int:
    """Tell how many findings were unexpected and what is missing, and write the pages."""
    missing = [each for each in results if each.version is None]
    surveyed = len(results) - len(missing)
    print(f"\n{surveyed} of {len(results)} layers surveyed; {unexpected} unexpected findings")
    if missing:
        packages = ", ".join(sorted({each.layer.package for each in missing}))
        print(f"not installed: {packages}; {_EXTRA} installs them")
    if folder is not None and (missing or unexpected):
        print(f"{folder} is not written: it has all layers, and what is found is judged")
    elif folder is not None:
        _write(folder, render_pages(results, examples))
    return 1 if unexpected or not surveyed or (folder is not None and missing) else 0


def _write(folder: Path, pages: dict[str, str]) -> None:
    """Write the pages, and remove those of packages that have no deviation any more."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        if is_of_a_package(old.read_text(encoding="utf-8")):
            old.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
