"""Run every code block of the README and of docs/."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.ranks.warm_python import WarmPython

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    language: str
    text: str

    @property
    def name(self) -> str:
        """Return the file name that the first line gives."""
        match = re.match(r"# (\S+\.(?:py|toml|yml))\n", self.text)
        assert match, f"the first line of a block names its file; this begins {self.text[:40]!r}"
        return match[1]

    @property
    def is_excerpt(self) -> bool:
        """Tell whether the block is part of a file of the suite, which runs there."""
        return self.text.startswith("# tests/found/")


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(found) * 2 == text.count("```"), "a fence is not closed"
    return [Block(language, text) for language, text in found]


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


NO_DEADLINE = """
from hypothesis import settings

settings.register_profile("docs", deadline=None)  # a busy machine takes longer than 200 ms
settings.load_profile("docs")
"""


@dataclass(frozen=True)
class Example:
    """The files of a page, in a folder in which its commands run."""

    folder: Path
    python: WarmPython

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "GITHUB_"))}
        return self.python.run(arguments, self.folder, kept | {"COLUMNS": "80"})


@pytest.fixture
def example(page: Path, tmp_path: Path, warm_python: WarmPython) -> Example:
    """Write the files of a page, and the helpers that the first page of its folder shows."""
    (tmp_path / "conftest.py").write_text(NO_DEADLINE)
    for block in [*helpers(page), *blocks(page)]:
        if block.language in ("python", "toml") and not block.is_excerpt:
            file = tmp_path / block.name
            file.parent.mkdir(exist_ok=True)
            file.write_text(block.text)
    return Example(tmp_path, warm_python)


def helpers(page: Path) -> list[Block]:
    """Return the files that pages of a folder share: those of its index that are no tests."""
    index = page.parent / "index.md"
    if page.parent in (ROOT, ROOT / "docs") or not index.exists():
        return []
    shown = [block for block in blocks(index) if block.language == "python"]
    return [block for block in shown if not Path(block.name).name.startswith("test_")]


PYTEST = ("-m", "pytest", "-p", "no:cacheprovider")


def test_python_blocks_pass_or_fail_as_the_page_says(page: Path, example: Example) -> None:
    shown_here = [block for block in blocks(page) if block.language == "python"]
    scripts = {block.name for block in shown_here if not block.is_excerpt}
    tests = sorted(name for name in scripts if Path(name).name.startswith("test_"))
    if not tests:
        shown = set(re.findall(r"^\$ python (\S+)$", page.read_text(), re.MULTILINE))
        assert is_shared(page) or scripts <= shown, "a block is neither a test nor run by a command"
        return
    failing = shown_to_fail(page)
    run = example.run(*PYTEST, "-q", "-rA", *tests)
    passed = set(re.findall(r"^PASSED (\S+?)::", run.stdout, re.MULTILINE))
    failed = set(re.findall(r"^FAILED (\S+?)::", run.stdout, re.MULTILINE))
    assert (failed, passed) == (failing, set(tests) - failing), run.stdout + run.stderr


def test_excerpts_are_in_the_files_that_they_name(page: Path) -> None:
    for block in blocks(page):
        if block.is_excerpt:
            excerpt = block.text.split("\n", 1)[1]
            assert excerpt in (ROOT / block.name).read_text(encoding="utf-8"), block.name


def is_shared(page: Path) -> bool:
    """Tell whether other pages use the files of a page."""
    return page.name == "index.md" and page.parent != ROOT / "docs"


def shown_to_fail(page: Path) -> set[str]:
    """Return the test files of which a page shows a failure."""
    shown = (block.text.splitlines() for block in blocks(page) if block.language == "text")
    failures = (text[0] for text in shown if any(line.startswith("E  ") for line in text))
    return {name for command in failures for name in re.findall(r"[\w/]+\.py", command)}


def test_shown_output_is_what_the_command_prints(page: Path, example: Example) -> None:
    printed: dict[str, str] = {}
    for block in blocks(page):
        if block.language == "text":
            command, *expected = block.text.splitlines()
            prompt, program, *arguments = command.split()
            assert (prompt, program) in (("$", "pytest"), ("$", "python")), command
            if command not in printed:
                before = PYTEST if program == "pytest" else ()
                printed[command] = output_of(example, *before, *arguments)
            assert "\n".join(expected) in printed[command], f"{command} prints:\n{printed[command]}"


def output_of(example: Example, *arguments: str) -> str:
    """Return what Python prints, without what depends on pytest's version."""
    lines = example.run(*arguments).stdout.splitlines()
    printed = [re.sub(r" +\[ *\d+%\]$", "", line).rstrip() for line in lines]
    printed = [line.replace("broadcast_buffers=", "forward_sync_buffers=") for line in printed]
    return "\n".join(line for line in printed if set(line.strip()) != {"^"})


def test_other_blocks_are_well_formed(page: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            assert tomllib.loads(block.text)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text)
        else:
            assert block.language in ("python", "text", "sh"), block.language


def test_the_readmes_commands_are_those_that_ci_and_newcomers_run() -> None:
    found = [block.text.strip() for block in blocks(ROOT / "README.md") if block.language == "sh"]
    make = "python3 -m venv .venv && .venv/bin/pip install -e "
    assert found == [
        "pip install git+https://github.com/pytest-bninvariants/pytest-bninvariants",
        "pytest --pyargs pytest_bninvariants.conformance "
        "--bn-impl='timm.layers:BatchNormAct2d(apply_act=False)'",
        f"{make}'.[test]' && .venv/bin/pytest -n auto",
    ]
