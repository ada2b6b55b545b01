"""The options of the conformance kit: what they accept, and what they choose."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import pytest_bninvariants
from tests.plugin.options.conformance_kit import (
    ARGS,
    FEW,
    KIT,
    MINE,
    NONE,
    OUR_FILE,
    PLAIN,
    QUICK,
    SOME,
    SUMMARY,
)

FILES = {
    "no_reason.txt": b"# so far so good\n\nrunning_var-*\n",
    "empty_reason.txt": b"running_var-*:   \n",
    "no_match.txt": b"running_var-BatchNorm2d-*: it is\nvar-*: why\n",
    "latin.txt": "running_var-*: schöner\n".encode("latin-1"),
}


USERS = """
from mine import Biased2d, Norm
from pytest_bninvariants import assert_bn_conforms


def test_fixture_fails(bn_conforms):
    bn_conforms(Biased2d, laws="running_var", dtypes=["float32"])


def test_function_fails():
    assert_bn_conforms(Biased2d, laws=["running_var", "momentum", "counter"], examples=25)


def test_fixture_holds(bn_conforms):
    bn_conforms(Norm, laws="running_*", dtypes=["float32"], examples=2)


def test_function_holds():
    assert_bn_conforms(Biased2d, laws="running_mean", dtypes=["float32"], examples=2, eps=0.1)
"""
NORM = "--bn-impl=mine:Norm"
WRONG = {  # option: what the message says besides
    "--bn-impl=": "cannot be read",
    "--bn-impl=mine": "cannot be read",
    "--bn-impl=mine.Norm": "cannot be read: write mine:Norm; accepted: MODULE:CLASS",
    "--bn-impl=torch.nn.BatchNorm2d(eps=0.1)@2d": "cannot be read: write torch.nn:BatchNorm2d",
    "--bn-impl=absent_module:Norm": "No module named 'absent_module'",
    "--bn-impl=failing:Norm": "ZeroDivisionError: division by zero",
    "--bn-impl=mine:Absent": "mine has no Absent",
    "--bn-impl=mine:Norm.Absent": "mine has no Norm.Absent",
    "--bn-impl=mine:number": "3 is not a class",
    "--bn-impl=mine:layer": "is a layer itself: give its class, or a function that makes it",
    "--bn-impl=torch.nn:Linear": "Linear(3) raised TypeError",
    "--bn-impl=torch:ones": "ones(3) makes no torch.nn.Module, but <Tensor of shape (3,)>",
    "--bn-impl=torch.nn:Embedding(embedding_dim=2)": "takes no input of 2 to 5 dimensions",
    "--bn-impl=mine:Told2d": "Told2d(3) raised RuntimeError: I was told None",
    f"{NORM}(foo=1)@2d": "Norm(3, foo=1) raised TypeError: ",
    f"{NORM}@4d": "rank '4d' is unknown; accepted: 0d, 1d, 2d, 3d, nd",
    f"{NORM}@": "cannot be read",
    f"{NORM}(0.1)": "(0.1)",
    f"{NORM}(0.1, momentum=0.2)": "by name",
    f"{NORM}(*[0.1])": "by name",
    f"{NORM}(**{{'eps': 0.1}})": "by name",
    f"{NORM}(eps=open('evaluated', 'w'))": "literals",
    f"{NORM}(eps=1 if True else 2)": "literals",
    f"{NORM}(eps={{[]: 1}})": "(eps={[]: 1})",
    f"{NORM}(eps=)": "these are not keyword arguments",
    f"{NORM}(eps=1)(momentum=1)": "(eps=1)(momentum=1)",
    f"{NORM}(eps=1).absent(momentum=1)": "(eps=1).absent(momentum=1)",
    f"{NORM}(eps=1) + (2)": "(eps=1) + (2)",
    f"{NORM}(eps=1, eps=2)": "(eps=1, eps=2)",
    f"{NORM}[epsilon=0.1]": "nothing is declared as 'epsilon'; accepted: eps, momentum",
    f"{NORM}[0.1]": "by name",
    f"{NORM}[without={{'compile': ''}}]": "expected {'PATTERN OF LAWS': 'REASON'}",
    f"{NORM}[ranks=0]": "ranks=0: expected how many processes to try it on, a number from 1 to 16",
    f"{NORM}[ranks=True]": "ranks=True: expected how many processes",
    f"{NORM}[ranks=17]": "ranks=17: expected how many processes",
    f"{NORM}[parameter_gradients='all']": "expected one of 'own', 'sum', 'mean'",
    f"{NORM}[process_group=3]": "process_group=3: expected the name of the argument",
    "--bn-laws=synced_*": "leave no test; synced_* are laws of layers that synchronise",
    "--bn-impl=mine:Wrapper2d": "has no weight of shape (3,), no bias of shape (3,)",
    "--bn-impl=torch.nn:LazyBatchNorm2d": "LazyBatchNorm2d is lazy",
    "--bn-laws=": "--bn-laws= is empty: give a name, or leave it out",
    "--bn-laws= ,": "--bn-laws= , is empty",
    "--bn-dtype=": "--bn-dtype= is empty",
    "--bn-xfails=": "--bn-xfails= is empty: give a file, or leave it out",
    "--bn-laws=running": "'running' matches no law; there are frozen (a set), ",
    "--bn-laws=running_var,absent": "absent",
    "--bn-laws=batchnorm*": "matches no law",
    "--bn-dtype=int8": "accepted: float64, float32, bfloat16, float16",
    "--bn-dtype=float32,half": "half",
    "--bn-examples=0": "a whole number >= 1",
    "--bn-examples=-1": "a whole number >= 1",
    "--bn-examples=1.5": "a whole number >= 1",
    "--bn-examples=some": "quick, default or thorough",
    "--bn-device=abacus": "abacus",
    "--bn-xfails=absent.txt": "No such file",
    "--bn-xfails=.": "--bn-xfails=.",
    "--bn-xfails=no_reason.txt": "no_reason.txt:3: 'running_var-*' has no reason",
    "--bn-xfails=empty_reason.txt": "empty_reason.txt:1: 'running_var-*:' has no reason",
    "--bn-xfails=no_match.txt": "no_match.txt:2: 'var-*' matches no test",
    "--bn-xfails=latin.txt": "latin.txt",
}

UNUSED = (
    *("--bn-impl=mine:Norm", "--bn-laws=counter"),
    *("--bn-dtype=float32", "--bn-xfails=biased.txt"),
)
EFFORT = ("--bn-examples=quick", "--bn-device=cpu")
FLAT = (*KIT, "-q", "--co", "--bn-laws=*_sizes", NORM, "--bn-impl=mine:Flat")
NOTHING = (*KIT, "--bn-laws=spatial_sizes", "--bn-impl=mine:Flat")
LEFT_OUT = (*KIT, *PLAIN, "-k", "test_plain", "--bn-laws=counter")
STYLES = ("--tb=auto", "--tb=long", "--tb=short", "--tb=native")
NAMING = (
    "python_classes=",
    "addopts=--import-mode=importlib",
)
FROZEN = (
    *("-rA", "--bn-laws=frozen", "--bn-dtype=float32", "--bn-examples=15"),
    "--bn-impl=torchvision.ops:FrozenBatchNorm2d",
    "--bn-impl=timm.layers:FrozenBatchNormAct2d(apply_act=False)",
    "--bn-impl=torch.nn:BatchNorm2d",
)
TIMM = (
    *("-rA", "--bn-dtype=float32", FEW),
    "--bn-laws=running_*,training_output,eval_output,counter,input_gradient",
    "--bn-impl=timm.layers:BatchNormAct2d(apply_act=False)",
)
TWO = ("-q", "--co", "--bn-impl=mine:Norm", "--bn-impl=mine:Norm(eps=0.1)", *QUICK)
EXPECTED = (
    *(SOME, "--bn-impl=mine:Biased2d", "--bn-xfails=biased.txt"),
    *("--bn-laws=running_*", "--bn-dtype=float32"),
)
SESSIONS = [
    *((*KIT, "-q", "--co", option) for option in WRONG),
    *(("test_it.py", "-rA", SOME, style) for style in STYLES),
    *((*PLAIN, option, *more) for option in UNUSED for more in ((), ("--co",))),
    *((*PLAIN, option) for option in EFFORT),
    LEFT_OUT,
    *(FLAT, NOTHING),
    *((*KIT, "-q", "--co", "-o", ini, NORM, *QUICK) for ini in NAMING),
    *((*KIT, *given) for given in (TWO, EXPECTED, FROZEN, TIMM)),
]


PROCESS = """
import contextlib, io, json, sys
import pytest

said = []
for arguments in json.loads(sys.argv[1]):
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        code = pytest.main(sys.argv[2:] + arguments)
    said.append([arguments, int(code), output.getvalue()])
print(json.dumps(said))
"""


@dataclass(frozen=True, slots=True)
class SessionOutput:
    """What a session ended with.

    Args:
        code: its exit code.
        text: what it wrote.
    """

    code: int
    text: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip()]

    @property
    def outcomes(self) -> dict[str, str]:
        """Return outcome by test, as the short summary of -rA has it."""
        matches = map(SUMMARY.match, self.lines)
        return {match[2]: match[1] for match in matches if match}


@dataclass(frozen=True, slots=True)
class SharedSessions:
    """Sessions that shared a process.

    Args:
        said: what each said, by its arguments.
        folder: where they ran.
    """

    said: dict[tuple[str, ...], SessionOutput]
    folder: Path

    def __getitem__(self, arguments: tuple[str, ...]) -> SessionOutput:
        said = self.said[arguments]
        assert "INTERNALERROR" not in said.text, said.text
        return said


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> SharedSessions:
    """Run sessions in one process, so that torch is imported once."""
    here = tmp_path_factory.mktemp("many")
    contents = FILES | {
        "mine.py": MINE.encode(),
        "failing.py": b"1 / 0\n",
        "biased.txt": b"running_var-*: biased\n",
        "test_it.py": USERS.encode(),
        "test_plain.py": b"def test_plain(): pass\n",
    }
    for name, content in contents.items():
        (here / name).write_bytes(content)
    unset = ("CI", "BUILD_NUMBER", "PYTHONPATH", "PYTEST_ADDOPTS", "FORCE_COLOR")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, json.dumps(SESSIONS), *ARGS],
        cwd=here,
        env=environment | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = {
        tuple(given): SessionOutput(code, text) for given, code, text in json.loads(done.stdout)
    }
    return SharedSessions(said, here)


@pytest.mark.parametrize("option", WRONG)
def test_a_wrong_value_is_a_usage_error_that_names_it(many: SharedSessions, option: str) -> None:
    said = many[*KIT, "-q", "--co", option]
    assert said.code == pytest.ExitCode.USAGE_ERROR, said.text
    assert len(said.lines) == 1, said.text
    assert said.text.startswith("ERROR: ")
    assert WRONG[option] in said.text
    if option.startswith("--bn-impl="):
        assert option in said.text


def test_of_all_those_values_none_was_evaluated(many: SharedSessions) -> None:
    assert not (many.folder / "evaluated").exists()


@pytest.mark.parametrize("more", [(), ("--co",)], ids=["run", "collect"])
@pytest.mark.parametrize("option", UNUSED)
def test_an_option_of_the_kit_in_a_run_without_the_kit_is_a_usage_error(
    many: SharedSessions, option: str, more: tuple[str, ...]
) -> None:
    said = many[*PLAIN, option, *more]
    assert said.code == pytest.ExitCode.USAGE_ERROR, said.text
    assert f"ERROR: {option.partition('=')[0]}: {NONE}" in said.text


@pytest.mark.parametrize("option", EFFORT)
def test_how_many_examples_and_where_may_be_said_in_any_run(
    many: SharedSessions, option: str
) -> None:
    said = many[*PLAIN, option]
    assert said.code == 0, said.text


def test_a_run_that_leaves_the_kit_out_by_name_is_no_error(many: SharedSessions) -> None:
    said = many[LEFT_OUT]
    assert said.code == 0, said.text
    assert "1 passed, 6 deselected" in said.text


def test_one_class_with_two_sets_of_arguments_has_two_names(many: SharedSessions) -> None:
    said = many[*KIT, *TWO]
    assert said.code == 0
    assert [line.partition("::")[2] for line in said.lines if "::" in line] == [
        "test_law[running_mean-mine:Norm-float32-cpu]",
        "test_law[running_mean-mine:Norm(eps=0.1)-float32-cpu]",
    ]


def test_a_run_with_expected_failures_only_succeeds(many: SharedSessions) -> None:
    said = many[*KIT, *EXPECTED]
    assert said.code == 0, said.text
    assert "1 passed, 1 xfailed" in said.text


def test_a_law_of_positions_is_left_out_for_a_layer_without_them(many: SharedSessions) -> None:
    said = many[FLAT]
    assert [line.partition("::")[2] for line in said.lines if "::" in line] == [
        "test_law[batch_sizes-Norm-float32-cpu]",
        "test_law[batch_sizes-Flat-float32-cpu]",
        "test_law[spatial_sizes-Norm-float32-cpu]",
        "test_law[spatial_sizes-Norm-float16-cpu]",
    ]
    said = many[NOTHING]
    assert said.code == pytest.ExitCode.USAGE_ERROR
    assert "--bn-laws, --bn-dtype and the ranks of --bn-impl leave no test" in said.text


def test_the_frozen_laws_tell_frozen_layers_from_others(many: SharedSessions) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    said = many[*KIT, *FROZEN]
    assert said.code == 1
    for name in ("FrozenBatchNorm2d", "FrozenBatchNormAct2d"):
        told = {outcome for each, outcome in said.outcomes.items() if f"-{name}-" in each}
        assert told == {"PASSED"}, said.text
    broken = [each for each, outcome in said.outcomes.items() if outcome == "FAILED"]
    assert broken == ["test_law[frozen_output-BatchNorm2d-float32-cpu]"]
    assert len(said.outcomes) > 3 * 10


def test_a_layer_of_timm_conforms_without_its_activation(many: SharedSessions) -> None:
    pytest.importorskip("timm")
    said = many[*KIT, *TIMM]
    assert said.code == 0, said.text
    assert len(said.outcomes) == 6


@pytest.mark.parametrize("ini", NAMING)
def test_the_kit_is_collected_whatever_a_project_calls_its_tests(
    many: SharedSessions, ini: str
) -> None:
    said = many[*KIT, "-q", "--co", "-o", ini, NORM, *QUICK]
    assert "test_law[running_mean-Norm-float32-cpu]" in said.text


@pytest.mark.parametrize("style", STYLES)
def test_a_users_tests_fail_with_the_report(many: SharedSessions, style: str) -> None:
    said = many["test_it.py", "-rA", SOME, style]
    assert said.code == 1
    assert "2 failed, 2 passed" in said.text
    one = r"Biased2d breaks the law running_var: layer\.running_var is off "
    two = "Biased2d breaks 2 of 3 laws: running_var, momentum"
    native = style == "--tb=native"  # Python prints these, and its prefix
    start = r"^pytest_bninvariants\.errors\.LawBroken: " if native else "^E +"
    assert re.search(start + one, said.text, re.M), said.text
    assert re.search(f"{start}{two}$", said.text, re.M), said.text
    assert re.search(rf"^FAILED test_it.py::test_fixture_fails - {one}", said.text, re.M)
    assert re.search(rf"^FAILED test_it.py::test_function_fails - {two}", said.text, re.M)


@pytest.mark.parametrize("style", STYLES)
def test_a_users_failure_shows_no_frame_of_ours(many: SharedSessions, style: str) -> None:
    said = many["test_it.py", "-rA", SOME, style]
    ours = [line for line in said.lines if OUR_FILE.search(line)]
    assert not ours, "\n".join(ours)
    assert str(Path(pytest_bninvariants.__file__).parent) not in said.text
