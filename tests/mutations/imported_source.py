"""Import the package with a fault in one module, or with probes that say which tests reach what.

No file is changed: the source is changed as it is compiled. So two faults can be tried at once,
and a process that a test starts gets the same fault, by its environment.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, SupportsIndex

PACKAGE = "pytest_bninvariants"
FAULT = "MUTATION_FAULT"  # a module's name and the file with its source
REACHED = "MUTATION_REACHED"  # the file into which probes write
TEST = "MUTATION_TEST"  # the test that runs

_seen: set[str] = set()


class FaultLoader(SourceFileLoader):
    """Load a module from the source that the environment names."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the other source under the module's own file name."""
        source = Path(os.environ[FAULT].partition("=")[2]).read_bytes()
        return self.source_to_code(source, self.path)


class ProbeLoader(SourceFileLoader):
    """Load a module with a probe at the start of each block."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source with its probes."""
        tree = ast.parse(Path(self.path).read_bytes())
        for name, node, body in list(blocks(tree)):
            _insert_probe(f"{fullname}:{name}", node, body)
        code: CodeType = compile(tree, self.path, "exec", dont_inherit=True)
        return code


class SourceFinder(MetaPathFinder):
    """Find modules of the package as ever, and give some of them another loader."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module of the package, or None."""
        loader = _loader(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if loader else None
        if spec is not None and loader is not None and spec.origin is not None:
            spec.loader = loader(fullname, spec.origin)
        return spec


class Finders(list[Any]):
    """The finders of this process; pytest puts its own, which rewrites asserts, after ours."""

    def insert(self, index: SupportsIndex, finder: Any) -> None:
        """Insert a finder, but not before the first."""
        super().insert(int(index) or 1, finder)


def _loader(fullname: str) -> type[SourceFileLoader] | None:
    if fullname == os.environ.get(FAULT, "").partition("=")[0]:
        return FaultLoader
    probed = REACHED in os.environ and fullname.partition(".")[0] == PACKAGE
    return ProbeLoader if probed else None


def install() -> None:
    """Change what this process imports from now on, as its environment says."""
    if not isinstance(sys.meta_path, Finders):
        sys.meta_path = Finders([SourceFinder(), *sys.meta_path])
    builtins.__mutation_probe__ = _probe  # type: ignore[attr-defined]


def start_test(name: str) -> None:
    """Let probes tell of this test from now on, here and in processes that it starts."""
    os.environ[TEST] = name
    _seen.clear()


def _probe(block: str) -> None:
    if block in _seen:
        return
    _seen.add(block)
    log = os.open(os.environ[REACHED], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{os.environ.get(TEST, '')}\t{block}\n".encode())
    os.close(log)


def blocks(tree: ast.Module) -> Iterator[tuple[str, ast.stmt | ast.ExceptHandler, list[ast.stmt]]]:
    """Name each list of statements inside a function: the function's name and a number."""
    yield from _blocks(tree, "", inside=False)


def _blocks(
    node: ast.AST, name: str, *, inside: bool
) -> Iterator[tuple[str, ast.stmt | ast.ExceptHandler, list[ast.stmt]]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = f"{name}.{child.name}".lstrip(".")
            for number, (owner, body) in enumerate(_bodies(child)):
                yield f"{inner}:{number}", owner, body
            yield from _blocks(child, inner, inside=True)
        elif isinstance(child, ast.ClassDef):
            yield from _blocks(child, f"{name}.{child.name}".lstrip("."), inside=inside)
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _blocks(child, name, inside=inside)


def _bodies(function: ast.AST) -> Iterator[tuple[Any, list[ast.stmt]]]:
    """Yield the lists of statements of a function, without those of functions inside it."""
    for field in ("body", "orelse", "finalbody"):
        if body := getattr(function, field, None):
            yield function, body
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(function, field, None) or ():
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from _bodies(child)


def _insert_probe(name: str, node: ast.AST, body: list[ast.stmt]) -> None:
    first = body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    at = 1 if text and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else 0
    call = ast.parse(f"__mutation_probe__({name!r})").body[0]
    for part in ast.walk(call):
        ast.copy_location(part, first)
    body.insert(at, call)
