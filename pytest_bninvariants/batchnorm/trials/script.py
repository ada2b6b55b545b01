"""Run lines of code one by one, and keep them, so that a report can print what ran."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import CodeType
from typing import Any

from torch import Tensor

from pytest_bninvariants.batchnorm.cases import literal


@lru_cache(maxsize=4096)  # the laws have about 600 lines; some differ by a case's numbers
def _compiled(line: str, mode: str) -> CodeType:
    return compile(line, "<law>", mode)


class Script:
    """Run lines of code, and keep them.

    Args:
        imports: the first lines, which are printed and not run.
        names: the values that these lines would bind, by name.
    """

    def __init__(self, imports: list[str], names: dict[str, Any]) -> None:
        self._imports, self._names = imports, names
        self._lines: list[str | Callable[[], list[str]]] = []

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, which is not kept."""
        return eval(_compiled(expression, "eval"), self._names)

    def run(self, line: str) -> None:
        """Keep a line, and run it."""
        self.keep(line)
        self.try_out(line)

    def try_out(self, line: str) -> None:
        """Run a line that is not kept."""
        exec(_compiled(line, "exec"), self._names)

    def keep(self, line: str | Callable[[], list[str]]) -> None:
        """Keep a line without running it, or a function that returns lines for a report."""
        self._lines.append(line)

    def bind(self, name: str, value: Any, source: Callable[[], list[str]]) -> None:
        """Bind a name to a value; the source returns code that does so, for a report."""
        self._names[name] = value
        self.keep(source)

    def get(self, name: str) -> Any:
        """Return what a name is bound to now; None if it is not."""
        return self._names.get(name)

    def bind_value(self, name: str, value: Tensor) -> None:
        """Bind a name to a copy of a tensor; a report prints the values that it has now."""
        moved = "" if value.device.type == "cpu" else f".to('{value.device}')"
        self.bind(name, value.clone(), lambda: [f"{name} = {literal(value)}{moved}"])

    def text(self, check: str | None) -> list[str]:
        """Return all lines.

        Args:
            check: an expression to assert at the end; None if the last line raises.
        """
        lines = [*self._imports, ""]
        for each in self._lines:
            lines += [each] if isinstance(each, str) else each()
        if check is not None:
            lines.append(f"assert {check}")
        return [part for line in lines for part in line.split("\n")]
