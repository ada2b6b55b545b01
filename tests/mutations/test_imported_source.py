"""A module is imported with its fault, and probes are where statements run."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from tests.mutations import imported_source
from tests.mutations.rooms import ROOT

SOURCE = '''
def outer(x):
    """Text."""
    if x:
        return 1
    elif x is None:
        return 2
    for each in x:
        pass
    else:
        def inner():
            return 3
    return inner

class Net:
    def forward(self):
        try:
            return 4
        except ValueError:
            return 5
'''


def test_each_list_of_statements_in_a_function_is_a_block() -> None:
    found = [(name, body[0].lineno) for name, _, body in imported_source.blocks(ast.parse(SOURCE))]
    assert sorted(found, key=lambda each: each[1]) == [
        ("outer:0", 3),
        ("outer:1", 5),
        ("outer:2", 6),
        ("outer:3", 7),
        ("outer:4", 9),
        ("outer:5", 11),
        ("outer.inner:0", 12),
        ("Net.forward:0", 17),
        ("Net.forward:1", 18),
        ("Net.forward:2", 20),
    ]


def test_a_process_that_a_test_starts_imports_the_same_fault(tmp_path: Path) -> None:
    faulty = tmp_path / "checks.py"
    faulty.write_text("is_int = 'faulty'\n")
    log = tmp_path / "reached"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(imported_source.__file__).parent / "site"), str(ROOT)]
        ),
        imported_source.FAULT: f"pytest_bninvariants.checks={faulty}",
        imported_source.REACHED: str(log),
        imported_source.TEST: "test_it",
    }
    program = (
        "from pytest_bninvariants import attributes, checks;"
        "print(checks.is_int); attributes.has_attributes(1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "faulty\n", done.stderr
    assert "test_it\tpytest_bninvariants.attributes:has_attributes:0\n" in log.read_text()
