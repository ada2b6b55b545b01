"""The faults that can be put into a module, each with a key that outlives edits elsewhere."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

from tests.mutations import imported_source
from tests.mutations.operators import operators
from tests.mutations.rooms import ROOT

OPERATORS = operators()
CACHES = {"cache", "lru_cache"}
# what these decorators say is for type checkers or for whoever reads the code, or it saves time
DECLARATIONS = {"overload", "override", "final", "abstractmethod", "wraps", "dataclass", *CACHES}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One change of one module."""

    path: Path
    function: str
    operator: str
    occurrence: int
    line: str
    ordinal: int  # among the same operator's on equal lines of one function
    number: int  # of the line
    block: str | None  # what a test must reach to notice, or None: the module

    @property
    def module(self) -> str:
        """The module's name."""
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts)

    @property
    def key(self) -> str:
        """What names the fault as long as its line and its function's name stay."""
        return f"{self.module}:{self.function} {self.operator} {self.ordinal} | {self.line}"

    @property
    def digest(self) -> str:
        """The key, in a form that fits a column and spreads evenly."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:32]

    def lot(self, seed: int) -> str:
        """Return what decides the fault's place in a sample, which edits elsewhere leave alone."""
        return hashlib.sha256(f"{seed} {self.key}".encode()).hexdigest()

    def source(self) -> str:
        """Return the module's source with the fault."""
        text = self.path.read_text(encoding="utf-8")
        changed = mutate_code(text, OPERATORS[self.operator], self.occurrence)
        assert changed is not None
        return str(changed)


@lru_cache(maxsize=1000)
def faults(path: Path) -> list[Fault]:
    """Return every fault of a module."""
    return list(_faults(path))


def _faults(path: Path) -> Iterator[Fault]:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    outline = Outline(text)
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    same: Counter[tuple[str, str, str]] = Counter()
    nodes = list(ast_nodes(get_ast(text)))
    for name, operator in OPERATORS.items():
        found = ((node, at) for node in nodes for at, _ in operator.mutation_positions(node))
        for occurrence, (node, (number, column)) in enumerate(found):
            if _divides_parameters(node) or outline.is_declaration(number, column):
                continue
            function, block = outline.place(number)
            line = lines[number - 1].strip()
            same[function, name, line] += 1
            yield Fault(
                path=path,
                function=function,
                operator=name,
                occurrence=occurrence,
                line=line,
                ordinal=same[function, name, line] - 1,
                number=number,
                block=block and f"{module}:{block}",
            )


def _divides_parameters(node: Any) -> bool:
    return node.parent is not None and node.parent.type in ("parameters", "lambdef")


class Outline:
    """Where the functions and blocks of a source are, and what in it only declares."""

    def __init__(self, text: str) -> None:
        tree = ast.parse(text)
        self._declared = list(_declarations(tree))
        self._blocks = [
            (body[0].lineno, body[-1].end_lineno or 0, name)
            for name, _, body in imported_source.blocks(tree)
        ]
        self._functions = list(_functions(tree, ""))

    def is_declaration(self, line: int, column: int) -> bool:
        """Tell whether what stands here has no effect at run time, or one that no test is for."""
        return any(start <= (line, column) < end for start, end in self._declared)

    def place(self, line: int) -> tuple[str, str | None]:
        """Return the function that holds a line, and the block in it that must run."""
        holders = [each for each in self._functions if each[0] <= line <= each[1]]
        if not holders:
            return "", None
        _, _, name, start = max(holders, key=lambda each: each[0])
        if start is None or line < start:
            return name, None
        within = [each for each in self._blocks if each[0] <= line <= each[1]]
        within = [each for each in within if each[2].rpartition(":")[0] == name]
        return name, max(within, key=lambda each: (each[0], -each[1]))[2] if within else f"{name}:0"


def _functions(node: ast.AST, name: str) -> Iterator[tuple[int, int, str, int | None]]:
    """Yield the first and the last line of each function, its name, and where a test reaches it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = f"{name}.{child.name}".lstrip(".")
            decorators = {_called(each) for each in child.decorator_list}
            first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
            # only the first of all tests reaches the body of a function that has a cache
            start = None if decorators & CACHES else child.lineno
            yield first, child.end_lineno or 0, inner, start
            yield from _functions(child, inner)
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{name}.{child.name}".lstrip("."))
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _functions(child, name)


def _declarations(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(tree):
        for child in _declaring(node):
            assert child.end_lineno is not None
            assert child.end_col_offset is not None
            start = child.col_offset - 1  # a decorator's @
            yield (child.lineno, start), (child.end_lineno, child.end_col_offset)


def _declaring(node: Any) -> Iterator[Any]:
    for field in ("annotation", "returns"):
        if isinstance(child := getattr(node, field, None), ast.AST):
            yield child
    for decorator in getattr(node, "decorator_list", ()):
        if _called(decorator) in DECLARATIONS:
            yield decorator
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            yield node
        case ast.Assert():  # tells a type checker what holds
            yield node
        case ast.Assign(value=ast.BinOp(op=ast.BitOr()) as value) if _is_type(value):
            yield value
        case ast.Call(func=ast.Name(id="zip"), keywords=keywords):
            yield from (each.value for each in keywords if each.arg == "strict")
        case ast.Call(func=ast.Name(id="field"), keywords=keywords):
            yield from (each.value for each in keywords if each.arg in ("repr", "compare"))


def _is_type(node: ast.expr) -> bool:
    """Tell whether an alias of types is written here."""
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _is_type(left) and _is_type(right)
        case ast.Name(id=name) | ast.Subscript(value=ast.Name(id=name)):
            return name[0].isupper() or name in ("str", "int", "float", "bool", "list", "dict")
        case ast.Attribute(attr=name):
            return name[0].isupper()
        case ast.Constant(value=None):
            return True
    return False


def _called(decorator: ast.expr) -> str:
    expression = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(expression).rpartition(".")[2]
