"""The conformance kit from the command line and from a test, in whole sessions of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

import pytest_bninvariants

MINE = '''
"""Layers that somebody wrote."""

import torch
from torch import nn


class Biased2d(nn.BatchNorm2d):
    """Its running_var takes the biased variance; all else is right."""

    def forward(self, x):
        if not self.training or self.running_var is None:
            return super().forward(x)
        before = self.running_var.clone()
        y = super().forward(x)
        with torch.no_grad():
            m = self.momentum
            m = 1 / self.num_batches_tracked.item() if m is None else m
            var = x.detach().to(before.dtype).var((0, 2, 3), unbiased=False)
            self.running_var.copy_((1 - m) * before + m * var)
        return y


class Told2d(nn.BatchNorm2d):
    """It fails if it is not told what it must be."""

    def __init__(self, *args, told=None, **keywords):
        if told != (1, "a", None, [0.5, {"b": False}]):
            raise RuntimeError(f"I was told {told}")
        super().__init__(*args, **keywords)


class Flat(nn.modules.batchnorm._BatchNorm):
    """It takes (N, C) alone."""

    def _check_input_dim(self, input):
        if input.dim() != 2:
            raise ValueError("expected (N, C)")


class Norm(nn.BatchNorm2d):
    """Its name has no rank, and it needs none."""


number = 3
layer = Norm(3)
'''
ARGS = ("-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function")
KIT = ("--pyargs", "pytest_bninvariants.conformance")
FEW, SOME = "--bn-examples=2", "--bn-examples=25"  # few find no defect, some find a coarse one
QUICK = ("--bn-laws=running_mean", "--bn-dtype=float32", FEW)
OUR_FILE = re.compile(r"pytest_bninvariants[/\\]\w|hypothesis[/\\]core\.py")
SUMMARY = re.compile(r"(PASSED|FAILED|XFAIL|ERROR) \S*?::(\S*\[.*?\])(?= - |$)(?: - (.*))?")


@pytest.fixture(autouse=True)
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with layers in it, that python finds only if it looks there."""
    for name in ("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "300")
    pytester.makepyfile(mine=MINE)
    return pytester.path


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Run a session in a process of its own."""
    result = pytester.runpytest_subprocess(*ARGS, *args, timeout=120)
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    return result


def outcomes_of(result: pytest.RunResult) -> dict[str, str]:
    """Return outcome by test, as the short summary of -rA has it."""
    matches = (SUMMARY.match(line) for line in result.outlines)
    return {match[2]: match[1] for match in matches if match}


def ids(result: pytest.RunResult) -> list[str]:
    """Return the tests that -q --co lists."""
    return [line.partition("::")[2] for line in result.outlines if "::" in line]


def test_without_options_the_layers_are_those_of_torch(pytester: pytest.Pytester) -> None:
    result = run(pytester, *KIT, "-q", "--co")
    assert result.ret == 0
    found = ids(result)
    assert "test_law[running_var-BatchNorm2d-float32-cpu]" in found
    parts = [re.fullmatch(r"test_law\[(\w+)-(\w+)-(\w+)-(\w+)\]", each) for each in found]
    assert {part and part[2] for part in parts} == {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d"}
    assert {part and part[3] for part in parts} == {"float64", "float32", "bfloat16", "float16"}
    assert {part and part[4] for part in parts} == {"cpu"}
    assert len(set(found)) == len(found) > 3 * 50


def test_layers_laws_and_dtypes_repeat(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        *(*KIT, "-q", "--co", "--bn-device=cpu", "--bn-examples=thorough"),
        *("--bn-impl=torch.nn:BatchNorm1d", "--bn-impl=mine:Norm@2d", "--bn-impl=mine:Norm@2d"),
        *("--bn-laws=running_var,counter", "--bn-laws=momen?um"),
        *("--bn-dtype=float32", "--bn-dtype=float64"),
    )
    assert result.ret == 0
    assert ids(result) == [
        f"test_law[{law}-{layer}-{dtype}-cpu]"
        for law, dtypes in {
            "running_var": ("float64", "float32"),
            "momentum": ("float64", "float32"),
            "counter": ("float32",),
        }.items()
        for layer in ("BatchNorm1d", "Norm")
        for dtype in dtypes
    ]


def test_laws_whose_cases_cost_most_come_first(pytester: pytest.Pytester) -> None:
    laws = ("--bn-laws=counter,compile,deepcopy", "--bn-dtype=float32")
    result = run(pytester, *KIT, "-q", "--co", "--bn-impl=mine:Norm@2d", *laws)
    assert ids(result) == [
        f"test_law[{law}-Norm-float32-cpu]" for law in ("compile", "deepcopy", "counter")
    ]


def test_a_layer_in_the_current_folder_is_found_and_given_its_arguments(
    pytester: pytest.Pytester,
) -> None:
    told = "mine:Told2d(told=(1, 'a', None, [0.5, {'b': False}]))@2d"
    result = run(pytester, *KIT, "-rA", f"--bn-impl={told}", *QUICK)
    assert result.ret == 0, result.stdout.str()
    assert outcomes_of(result) == {"test_law[running_mean-Told2d-float32-cpu]": "PASSED"}


def snippet_in(text: str) -> str:
    """Return the code in a failure's report."""
    _, _, code = text.partition("this reproduces it:\n")
    indented = re.match(r"(?:(?: {4}.*)?\n)+", code)
    assert indented, text
    return dedent(indented[0])


def test_a_broken_law_is_reported_with_a_snippet_that_fails_alone(
    pytester: pytest.Pytester, folder: Path
) -> None:
    result = run(
        pytester,
        *(*KIT, "-rA", SOME, "--bn-impl=mine:Biased2d"),
        *("--bn-laws=running_*", "--bn-dtype=float32"),
    )
    assert result.ret == 1
    assert outcomes_of(result) == {
        "test_law[running_mean-Biased2d-float32-cpu]": "PASSED",
        "test_law[running_var-Biased2d-float32-cpu]": "FAILED",
    }
    text = result.stdout.str()
    assert "Biased2d breaks the law running_var: layer.running_var is off in 1 of 1 chann" in text
    assert re.search(r"^law   Each batch in training makes running_var .*n/\(n - 1\)", text, re.M)
    assert re.search(r"^case  float32 on cpu", text, re.M)
    assert re.search(r"^ +channel +at +expected +got +bound +error/bound$", text, re.M)
    assert text.count("breaks the law") == 1 + text.count("- Failed: Biased2d breaks the law")
    assert not OUR_FILE.search(text), "files of ours are named"
    assert "hypothesis" not in text.partition("FAILURES")[2].lower()

    code = snippet_in(text)
    assert "pytest_bninvariants" not in code
    done = subprocess.run(
        [sys.executable, "-"], input=code, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("AssertionError"), done.stderr
    healed = code.replace("from mine import Biased2d", "from torch.nn import BatchNorm2d")
    exec(healed.replace("Biased2d(", "BatchNorm2d("), {})


XFAILS = """\
# what this layer does not do

running_var-Biased2d-*: biased: on purpose
running_mean-Biased2d-float32-cpu: somebody thought so
eval_output-*: is not chosen in this run, but there is such a law
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "two_workers"])
def test_expected_failures_are_expected_and_strictly_so(
    pytester: pytest.Pytester, folder: Path, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    (folder / "xfails.txt").write_text(XFAILS)
    result = run(
        pytester,
        *(*KIT, "-rA", SOME, "--bn-xfails=xfails.txt", *workers, "--bn-impl=mine:Biased2d"),
        *("--bn-laws=running_*,counter,momentum", "--bn-dtype=float32"),
    )
    assert result.ret == 1
    assert outcomes_of(result) == {
        "test_law[counter-Biased2d-float32-cpu]": "PASSED",
        "test_law[momentum-Biased2d-float32-cpu]": "FAILED",
        "test_law[running_mean-Biased2d-float32-cpu]": "FAILED",
        "test_law[running_var-Biased2d-float32-cpu]": "XFAIL",
    }
    text = result.stdout.str()
    assert "running_var-Biased2d-float32-cpu] - biased: on purpose" in text
    assert "[XPASS(strict)] somebody thought so" in text
    assert "Biased2d breaks the law momentum" in text
    assert "breaks the law running_var" not in text
    assert result.parseoutcomes() == {"passed": 1, "failed": 2, "xfailed": 1}


ILL_POSED = """
import pytest


@pytest.mark.parametrize("ill_posed, posed", [(1.5, 8.5), (0, 10), (4, 6), (1.25, 4.75)])
def test_it(record_property, ill_posed, posed):
    record_property("bn_law", "running_var" if ill_posed > 1.25 else "momentum")
    record_property("bn_examples", 2000)
    record_property("bn_ill_posed", [ill_posed, posed])


def test_fails(record_property):
    record_property("bn_law", "counter")
    record_property("bn_examples", 2000)
    record_property("bn_ill_posed", [1, 0])
    assert 0


def test_user(record_property):
    record_property("mine", 1)
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "two_workers"])
def test_a_run_ends_with_what_it_judged_and_names_laws_that_were_notably_ill_posed(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    pytester.makepyfile(test_recorded=ILL_POSED)
    result = run(pytester, "test_recorded.py", *workers)
    assert [line for line in result.outlines if line.startswith("bn conformance")] == [
        "bn conformance: 4 checks held on 8,000 cases; 18.8% of comparisons ill-posed",
        "bn conformance: notably ill-posed: running_var 28%",
    ]
    result = run(pytester, *KIT, *QUICK, *workers)
    assert [line for line in result.outlines if line.startswith("bn conformance")] == [
        "bn conformance: 3 checks held on 6 cases; 0.0% of comparisons ill-posed"
    ]


def test_a_run_without_laws_says_nothing_of_them(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it="def test_it(record_property): record_property('mine', 1)")
    assert "bn conformance" not in run(pytester, "test_it.py").stdout.str()


def test_arguments_are_not_evaluated(pytester: pytest.Pytester, folder: Path) -> None:
    given = "--bn-impl=mine:Biased2d(eps=__import__('os').mkdir('evaluated'))"
    result = run(pytester, *KIT, given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert given in result.stderr.str()
    assert not (folder / "evaluated").exists()


FILES = {
    "no_reason.txt": b"# so far so good\n\nrunning_var-*\n",
    "empty_reason.txt": b"running_var-*:   \n",
    "no_match.txt": b"running_var-BatchNorm2d-*: it is\nvar-*: why\n",
    "latin.txt": "running_var-*: schöner\n".encode("latin-1"),
}
NORM = "--bn-impl=mine:Norm"
WRONG = {  # option: what the message says besides
    "--bn-impl=": "cannot be read",
    "--bn-impl=mine": "cannot be read",
    "--bn-impl=mine.Norm": "cannot be read: write mine:Norm; accepted is MODULE:CLASS",
    "--bn-impl=torch.nn.BatchNorm2d(eps=0.1)@2d": "cannot be read: write torch.nn:BatchNorm2d",
    "--bn-impl=absent_module:Norm": "No module named 'absent_module'",
    "--bn-impl=failing:Norm": "ZeroDivisionError: division by zero",
    "--bn-impl=mine:Absent": "mine has no Absent",
    "--bn-impl=mine:Norm.Absent": "mine has no Norm.Absent",
    "--bn-impl=mine:number": "3 is no class",
    "--bn-impl=mine:layer": "is a layer itself: give its class, or a function that makes it",
    "--bn-impl=torch.nn:Linear": "Linear(3) raised TypeError",
    "--bn-impl=torch:ones": "ones(3) makes no torch.nn.Module, but tensor([1., 1., 1.]) (Tensor)",
    "--bn-impl=torch.nn:Embedding(embedding_dim=2)": "takes no input of 2 to 5 dimensions",
    "--bn-impl=mine:Told2d": "Told2d(3) raised RuntimeError: I was told None",
    f"{NORM}(foo=1)@2d": "Norm(3, foo=1) raised TypeError: ",
    f"{NORM}@4d": "rank '4d' is unknown; accepted are 1d, 2d, 3d, nd",
    f"{NORM}@": "cannot be read",
    f"{NORM}(0.1)": "(0.1)",
    f"{NORM}(0.1, momentum=0.2)": "by name",
    f"{NORM}(*[0.1])": "by name",
    f"{NORM}(**{{'eps': 0.1}})": "by name",
    f"{NORM}(eps=open('evaluated', 'w'))": "literals",
    f"{NORM}(eps=1 if True else 2)": "literals",
    f"{NORM}(eps={{[]: 1}})": "(eps={[]: 1})",
    f"{NORM}(eps=)": "no arguments",
    f"{NORM}(eps=1)(momentum=1)": "(eps=1)(momentum=1)",
    f"{NORM}(eps=1).absent(momentum=1)": "(eps=1).absent(momentum=1)",
    f"{NORM}(eps=1) + (2)": "(eps=1) + (2)",
    f"{NORM}(eps=1, eps=2)": "(eps=1, eps=2)",
    "--bn-laws=": "--bn-laws=: is empty; give a name, or leave it out",
    "--bn-laws= ,": "--bn-laws= ,: is empty",
    "--bn-dtype=": "--bn-dtype=: is empty",
    "--bn-xfails=": "--bn-xfails=: is empty; give a file, or leave it out",
    "--bn-laws=running": "'running' matches no law; there are frozen (a set), ",
    "--bn-laws=running_var,absent": "absent",
    "--bn-laws=batchnorm*": "matches no law",
    "--bn-dtype=int8": "accepted are float64, float32, bfloat16, float16",
    "--bn-dtype=float32,half": "half",
    "--bn-examples=0": "a whole number from 1",
    "--bn-examples=-1": "a whole number from 1",
    "--bn-examples=1.5": "a whole number from 1",
    "--bn-examples=some": "quick, default, thorough",
    "--bn-device=abacus": "abacus",
    "--bn-xfails=absent.txt": "No such file",
    "--bn-xfails=.": "--bn-xfails=.",
    "--bn-xfails=no_reason.txt": "no_reason.txt:3: 'running_var-*' has no reason",
    "--bn-xfails=empty_reason.txt": "empty_reason.txt:1: 'running_var-*:' has no reason",
    "--bn-xfails=no_match.txt": "no_match.txt:2: 'var-*' matches no test",
    "--bn-xfails=latin.txt": "latin.txt",
}


def test_a_broken_law_can_be_caught_and_asked_for_its_name_and_code(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest
        from mine import Biased2d, Norm
        from pytest_bninvariants import LawBroken, ReferenceBatchNorm, assert_bn_conforms


        def test_it(bn_conforms):
            with pytest.raises(LawBroken) as caught:
                bn_conforms(Biased2d, laws="running_*", examples=25, dtypes=["float32"])
            assert caught.value.law == "running_var"
            with pytest.raises(AssertionError):
                exec(caught.value.snippet, {})


        @pytest.mark.parametrize(
            "options, said",
            [
                ({"laws": "absent"}, "'absent' matches no law"),
                ({"dtypes": ["int8"]}, "dtype 'int8' is unknown"),
                ({"rank": "4d"}, "rank '4d' is unknown"),
            ],
        )
        def test_wrong_arguments(bn_conforms, options, said):
            for conforms in (bn_conforms, assert_bn_conforms):
                with pytest.raises(ValueError) as caught:
                    conforms(Norm, **options)
                assert said in str(caught.value)


        def test_reference(reference_bn):
            import torch

            assert reference_bn is ReferenceBatchNorm
            layer, twin = torch.nn.BatchNorm2d(3).double(), reference_bn(3)
            x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
            torch.testing.assert_close(twin(x), layer(x))
            torch.testing.assert_close(twin.running_var, layer.running_var)
            assert twin.num_batches_tracked == layer.num_batches_tracked == 1
        """
    )
    result = run(pytester, "test_it.py")
    assert result.ret == 0, result.stdout.str()
    assert result.parseoutcomes() == {"passed": 5}


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

PLAIN = ("test_plain.py", "-q")
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
class Said:
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
class Many:
    """Sessions that shared a process.

    Args:
        said: what each said, by its arguments.
        folder: where they ran.
    """

    said: dict[tuple[str, ...], Said]
    folder: Path

    def __getitem__(self, arguments: tuple[str, ...]) -> Said:
        said = self.said[arguments]
        assert "INTERNALERROR" not in said.text, said.text
        return said


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Many:
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
    said = {tuple(given): Said(code, text) for given, code, text in json.loads(done.stdout)}
    return Many(said, here)


@pytest.mark.parametrize("option", WRONG)
def test_a_wrong_value_is_a_usage_error_that_names_it(many: Many, option: str) -> None:
    said = many[*KIT, "-q", "--co", option]
    assert said.code == pytest.ExitCode.USAGE_ERROR, said.text
    assert len(said.lines) == 1, said.text
    assert said.text.startswith("ERROR: ")
    assert WRONG[option] in said.text
    if option.startswith("--bn-impl="):
        assert option in said.text


def test_of_all_those_values_none_was_evaluated(many: Many) -> None:
    assert not (many.folder / "evaluated").exists()


NONE = "no test of the conformance kit was collected; give `--pyargs pytest_bninvariants.conform"


@pytest.mark.parametrize("more", [(), ("--co",)], ids=["run", "collect"])
@pytest.mark.parametrize("option", UNUSED)
def test_an_option_of_the_kit_in_a_run_without_the_kit_is_a_usage_error(
    many: Many, option: str, more: tuple[str, ...]
) -> None:
    said = many[*PLAIN, option, *more]
    assert said.code == pytest.ExitCode.USAGE_ERROR, said.text
    assert f"ERROR: {option.partition('=')[0]}: {NONE}" in said.text


def test_workers_fail_the_run_for_such_an_option(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(test_plain="def test_plain(): pass")
    result = run(pytester, *PLAIN, "-n", "2", *QUICK)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes() == {"passed": 1, "errors": 1}
    assert f"--bn-laws, --bn-dtype: {NONE}" in result.stdout.str()


@pytest.mark.parametrize("option", EFFORT)
def test_how_many_examples_and_where_may_be_said_in_any_run(many: Many, option: str) -> None:
    said = many[*PLAIN, option]
    assert said.code == 0, said.text


def test_a_run_that_leaves_the_kit_out_by_name_is_no_error(many: Many) -> None:
    said = many[LEFT_OUT]
    assert said.code == 0, said.text
    assert "1 passed, 6 deselected" in said.text


def test_a_run_of_what_failed_last_needs_no_test_of_the_kit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_plain="def test_plain(): pass")
    cache = pytester.mkdir("cache")
    (cache / "v" / "cache").mkdir(parents=True)
    (cache / "v" / "cache" / "lastfailed").write_text('{"test_plain.py::test_plain": true}')
    result = pytester.runpytest_subprocess(
        *("-o", f"cache_dir={cache}", *ARGS[2:]), *(*KIT, *PLAIN, "--lf", "--bn-laws=counter")
    )
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    assert result.parseoutcomes() == {"passed": 1}


def test_one_class_with_two_sets_of_arguments_has_two_names(many: Many) -> None:
    said = many[*KIT, *TWO]
    assert said.code == 0
    assert [line.partition("::")[2] for line in said.lines if "::" in line] == [
        "test_law[running_mean-mine:Norm-float32-cpu]",
        "test_law[running_mean-mine:Norm(eps=0.1)-float32-cpu]",
    ]


def test_a_run_with_expected_failures_only_succeeds(many: Many) -> None:
    said = many[*KIT, *EXPECTED]
    assert said.code == 0, said.text
    assert "1 passed, 1 xfailed" in said.text


def test_a_law_of_positions_is_left_out_for_a_layer_without_them(many: Many) -> None:
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


def test_the_frozen_laws_tell_frozen_layers_from_others(many: Many) -> None:
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


def test_a_layer_of_timm_conforms_without_its_activation(many: Many) -> None:
    pytest.importorskip("timm")
    said = many[*KIT, *TIMM]
    assert said.code == 0, said.text
    assert len(said.outcomes) == 6


@pytest.mark.parametrize("ini", NAMING)
def test_the_kit_is_collected_whatever_a_project_calls_its_tests(many: Many, ini: str) -> None:
    said = many[*KIT, "-q", "--co", "-o", ini, NORM, *QUICK]
    assert "test_law[running_mean-Norm-float32-cpu]" in said.text


@pytest.mark.parametrize("style", STYLES)
def test_a_users_tests_fail_with_the_report(many: Many, style: str) -> None:
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
def test_a_users_failure_shows_no_frame_of_ours(many: Many, style: str) -> None:
    said = many["test_it.py", "-rA", SOME, style]
    ours = [line for line in said.lines if OUR_FILE.search(line)]
    assert not ours, "\n".join(ours)
    assert str(Path(pytest_bninvariants.__file__).parent) not in said.text
