"""What the plugin costs where nobody uses it: no import of anything big."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_bninvariants

HEAVY = {"torch", "numpy", "hypothesis"}

RUN = """
import json, sys
import pytest
code = pytest.main({args!r})
print()
print(json.dumps([int(code), sorted(sys.modules)]))
"""


def modules_after(folder: Path, *args: str) -> tuple[int, set[str], str]:
    """Run pytest in a process of its own; return exit code, modules and output."""
    # hypothesis's plugin imports all of hypothesis as it writes its summary
    args = ("-pno:cacheprovider", "-pno:hypothesispytest", *args)
    source = RUN.format(args=[*args])
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, check=True
    )
    output, _, last = done.stdout.rstrip().rpartition("\n")
    code, modules = json.loads(last)
    return code, set(modules), output


@pytest.mark.parametrize(
    "option", ["--co", "--bn-device=cpu", "--bn-audit", "--bn-trace", "--strict-markers"]
)
def test_an_empty_folder_loads_nothing_big(tmp_path: Path, option: str) -> None:
    code, modules, _ = modules_after(tmp_path, option)
    assert code == pytest.ExitCode.NO_TESTS_COLLECTED
    assert not HEAVY & modules
    assert "pytest_bninvariants.plugin" in modules
    assert "pytest_bninvariants.plugin.guarded_call" not in modules
    assert ("pytest_bninvariants.plugin.trace_rerun" in modules) == (option == "--bn-trace")


def test_tests_that_do_not_use_the_plugin_load_nothing_big(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import unittest\n\n"
        "def test_passes(): pass\n\n"
        "def test_fails(): assert 1 == 2\n\n"
        "def test_skips(): __import__('pytest').skip()\n\n"
        "class TestStep(unittest.TestCase):\n"
        "    def test_passes(self): pass\n"
        "    def test_fails(self): assert 1 == 2\n"
    )
    code, modules, output = modules_after(tmp_path)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "2 failed, 2 passed, 1 skipped" in output
    assert not HEAVY & modules
    ours = {name for name in modules if name.startswith("pytest_bninvariants.")}
    assert not ours & {
        "pytest_bninvariants.plugin.guarded_call",
        "pytest_bninvariants.plugin.trace_rerun",
        "pytest_bninvariants.invariants.guard",
        "pytest_bninvariants.reporting.verdict_text",
    }


def test_collecting_marked_tests_loads_nothing_big(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n"
        "@pytest.mark.frozen_bn('backbone')\n"
        "@pytest.mark.ranks(2)\n"
        "def test_it(model, frozen, bn_device): pass\n"
    )
    code, modules, output = modules_after(tmp_path, "--co", "-q", "--strict-markers")
    assert code == pytest.ExitCode.OK
    assert "test_it.py::test_it[cpu]" in output
    assert not HEAVY & modules


SAYS = {
    "--markers": [
        "@pytest.mark.frozen_bn(*modules, parameters=True, buffers=True, allow_batch_stats=False, "
        "exclude=(), trains=None, model=None): fail the test if its call changes a BN layer",
        "@pytest.mark.frozen(*modules, parameters=True, buffers=True, allow_batch_stats=False, "
        "exclude=(), trains=None, model=None): fail the test if its call changes any parameter",
        "@pytest.mark.same_output(*modules, inputs, rtol=0.0, atol=0.0, model=None): fail the test",
        "@pytest.mark.batch_invariant(*modules, inputs, rtol=0.0, atol=0.0, examples=20, "
        "model=None): fail the test if after its call a sample's output",
        "@pytest.mark.in_sync(one, other=None, *modules, parameters=False, exclude=(), decay=None, "
        "buffers='copied'): fail the test if after its call two models",
        "@pytest.mark.ranks(n, backend=None, timeout=60): run the test on n processes",
    ],
    "--fixtures": [
        "frozen_bn [session scope]",
        "Guard BN layers: `with frozen_bn(model,",
        "frozen [session scope]",
        "`with frozen(model,",
        "same_output [session scope]",
        "batch_invariant [session scope]",
        "in_sync [session scope]",
        "bn_device [session scope]",
        "Run the test on each device of --bn-device in turn",
    ],
    "--help": [
        "--bn-device=DEVICE",
        "--bn-audit, --bn-audit=report, --bn-audit=fail",
        "bn_audit (string):",
        "--bn-trace, --bn-trace=rerun, --bn-trace=same-run",
        "bn_device (args):",
        "bn_layer_types (args):",
        "bn_snapshot_budget (string):",
        "frozen BatchNorm and other training invariants",
    ],
}


@pytest.mark.parametrize("option", SAYS)
def test_pytests_own_help_shows_what_there_is_and_loads_nothing_big(
    tmp_path: Path, option: str
) -> None:
    code, modules, output = modules_after(tmp_path, option)
    assert code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    shown = " ".join(output.split())
    for line in SAYS[option]:
        assert line in shown, output
    assert not HEAVY & modules


def test_help_is_whole_sentences_without_percent_signs(tmp_path: Path) -> None:
    _, _, output = modules_after(tmp_path, "--help")
    shown = " ".join(output.split())
    assert "%(" not in shown
    assert "run tests that use the `bn_device` fixture on DEVICE: cpu (the default)" in shown


IMPORTS = """
import json, sys
import pytest_bninvariants
before = sorted(sys.modules)
names = {statement}
print(json.dumps([before, sorted(sys.modules), names]))
"""


def after_import(statement: str) -> tuple[set[str], set[str], list[str]]:
    source = IMPORTS.format(statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    before, after, names = json.loads(done.stdout)
    return set(before), set(after), names


def test_importing_the_package_loads_nothing_big_until_a_guard_is_used() -> None:
    statement = "[pytest_bninvariants.frozen_bn.__name__, pytest_bninvariants.frozen.__name__]"
    before, after, names = after_import(statement)
    assert not HEAVY & before
    assert "pytest" not in before
    assert "torch" in after
    assert "pytest" not in after
    assert names == ["frozen_bn", "frozen"]


def test_errors_and_verdicts_are_loaded_without_torch() -> None:
    statement = (
        "[pytest_bninvariants.GateError.__name__, pytest_bninvariants.FrozenStateChanged.__name__, "
        "pytest_bninvariants.Verdict.__name__]"
    )
    _, after, names = after_import(statement)
    assert not HEAVY & after
    assert names == ["GateError", "FrozenStateChanged", "Verdict"]


def test_every_public_name_can_be_loaded_and_is_listed() -> None:
    for name in pytest_bninvariants.__all__:
        assert getattr(pytest_bninvariants, name).__name__ == name
        assert name in dir(pytest_bninvariants)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'pytest_bninvariants' has no attribute 'frozen_nb'"):
        _ = pytest_bninvariants.frozen_nb  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        from pytest_bninvariants import frozen_nb  # noqa: F401
