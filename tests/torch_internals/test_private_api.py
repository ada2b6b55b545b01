"""Each private name of torch is known, and there is a way without it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

import pytest_bninvariants
from pytest_bninvariants.torch_internals import dynamo  # noqa: F401, it looks up names as well
from pytest_bninvariants.torch_internals.private_api import MODULE_ATTRIBUTES, NAMES

PACKAGE = Path(pytest_bninvariants.__file__).parent
SOURCES = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "torch_internals"]
FOUND = [name for name in NAMES if name.exists]
NOT_TORCHS = {
    *("_getframe", "_replace", "_fields"),  # of Python's own sys and namedtuple
    *("_exit", "_args_from_interpreter_flags"),  # of its os and subprocess
    *("_excinfo", "_arg2fixturedefs"),  # of pytest's
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.path)
def test_a_name_is_there_since_the_torch_that_is_said_to_have_it(name: object) -> None:
    assert name.exists == (TorchVersion(torch.__version__) >= name.since)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.path)
def test_a_name_says_what_it_is_for_and_what_happens_without_it(name: object) -> None:
    assert name.used_for
    assert name.without


def test_no_name_is_looked_up_twice() -> None:
    paths = [name.path for name in NAMES]
    assert sorted(paths) == sorted(set(paths))


@pytest.mark.parametrize("attribute", MODULE_ATTRIBUTES)
def test_a_module_has_the_attributes_that_are_used_directly(attribute: str) -> None:
    assert hasattr(nn.Module(), attribute)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[str]]:
    """Return how a guard and a trace end, for each name that is taken away."""
    script = Path(__file__).with_name("private_names.py")
    command = [sys.executable, script, *(name.path for name in FOUND)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", FOUND, ids=lambda name: name.path)
def test_without_a_name_guards_judge_all_the_same_or_refuse_to_start(
    name: object, outcomes: dict[str, list[str]]
) -> None:
    outcome, said = outcomes[name.path]
    if not name.needed_by:
        assert outcome == "judged", said
        return
    missing = name.path.replace(":", ".")
    assert outcome == "refused", said
    assert said.startswith(f"torch {torch.__version__} has no {missing}, which {name.needed_by} ")


def own_names(trees: list[ast.Module]) -> set[str]:
    """Return the private names that the package itself defines or sets."""
    defined = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {node.name for node in nodes if isinstance(node, defined)}
    stored = (ast.Attribute, ast.Name)
    targets = [n for n in nodes if isinstance(n, stored) and isinstance(n.ctx, ast.Store)]
    return names | {n.attr if isinstance(n, ast.Attribute) else n.id for n in targets}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def foreign_names(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Yield the private names that a module uses, other than the package's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            yield from filter(is_private, (node.module or "").split("."))
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            yield from filter(is_private, parts)
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.attr


def test_private_names_of_torch_are_used_in_torch_internals_alone() -> None:
    trees = {path: ast.parse(path.read_text()) for path in SOURCES}
    own = own_names([*trees.values()])
    allowed = NOT_TORCHS | set(MODULE_ATTRIBUTES)
    used = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path, tree in trees.items()
        for name in foreign_names(tree, own)
        if name not in allowed
    }
    assert used == set()


@pytest.mark.parametrize(
    "line",
    [
        "from torch._ops import OpOverload",
        "from torch.nn.modules.batchnorm import _NormBase",
        "import torch._dynamo",
        "torch._C._current_graph_task_id()",
        "tensor._version",
    ],
)
def test_the_search_for_private_names_finds_them(line: str) -> None:
    assert [*foreign_names(ast.parse(line), set())]
