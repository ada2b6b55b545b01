"""The conformance kit from the command line and from a test, in whole sessions of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.plugin.options.conformance_kit import (
    ARGS,
    KIT,
    MINE,
    NONE,
    OUR_FILE,
    PLAIN,
    QUICK,
    SOME,
    SUMMARY,
)


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


def test_the_simplest_laws_come_first_and_compile_last(pytester: pytest.Pytester) -> None:
    laws = ("--bn-laws=counter,compile,batch_sizes,eval_output,construction", "--bn-dtype=float32")
    result = run(pytester, *KIT, "-q", "--co", "--bn-impl=mine:Norm@2d", *laws)
    order = ("construction", "eval_output", "counter", "batch_sizes", "compile")
    assert ids(result) == [f"test_law[{law}-Norm-float32-cpu]" for law in order]


def test_a_law_that_is_left_out_is_a_skipped_test_with_its_reason(
    pytester: pytest.Pytester,
) -> None:
    declared = "mine:Norm[without={'running_*': 'not yet'}]@2d"
    laws = ("--bn-laws=counter,running_mean", "--bn-dtype=float32")
    result = run(pytester, *KIT, "-rs", f"--bn-impl={declared}", *laws)
    assert result.parseoutcomes() == {"passed": 1, "skipped": 1}
    assert "left out: not yet" in result.stdout.str()


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


def test_workers_fail_the_run_for_such_an_option(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(test_plain="def test_plain(): pass")
    result = run(pytester, *PLAIN, "-n", "2", *QUICK)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes() == {"passed": 1, "errors": 1}
    assert f"--bn-laws, --bn-dtype: {NONE}" in result.stdout.str()


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
