"""Laws of layers that synchronise, in whole sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin.options.conformance_kit import ARGS, KIT

SYNCS = '''
import os
import torch
from torch import distributed, nn


def add_up(values):
    total = values.clone()
    distributed.all_reduce(total)
    return total


class Sync2d(nn.BatchNorm2d):
    """Right in forward; it notes the processes in which it ran."""

    def forward(self, x):
        if not self.training or not distributed.is_initialized():
            return super().forward(x)
        with open(f"ran.{os.getpid()}", "a"):
            pass
        n = float(add_up(torch.tensor(float(x.numel() // x.shape[1]))))
        mean = add_up(x.sum((0, 2, 3))) / n
        var = add_up((x - mean[:, None, None]).square().sum((0, 2, 3))) / n
        self.num_batches_tracked += 1
        m = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, m)
        self.running_var.lerp_(self.unbiased(var, n, x), m)
        y = (x - mean[:, None, None]) * (var + self.eps).rsqrt()[:, None, None]
        return y * self.weight[:, None, None] + self.bias[:, None, None]

    def unbiased(self, var, n, x):
        return var * n / (n - 1)


class Averaged2d(Sync2d):
    def unbiased(self, var, n, x):
        own = x.numel() // x.shape[1]
        return var * own / (own - 1)


'''
STATISTICS = ("--bn-laws=synced_running_*", "--bn-dtype=float32", "--bn-examples=30", "-rA")


@pytest.fixture(autouse=True)
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "300")
    pytester.makepyfile(syncs=SYNCS)
    return pytester.path


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess(*ARGS, *KIT, *args, timeout=180)


def test_one_start_of_ranks_serves_all_laws_of_a_session(
    pytester: pytest.Pytester, folder: Path
) -> None:
    result = run(pytester, "--bn-impl=syncs:Sync2d", *STATISTICS)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["bn conformance: 2 checks held on *"])
    assert len([*folder.glob("ran.*")]) == 2


def test_more_ranks_are_declared(pytester: pytest.Pytester, folder: Path) -> None:
    run(pytester, "--bn-impl=syncs:Sync2d[ranks=3]", *STATISTICS).assert_outcomes(passed=2)
    assert len([*folder.glob("ran.*")]) == 3


def test_a_broken_law_is_told_without_a_traceback(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--bn-impl=syncs:Averaged2d", *STATISTICS)
    result.assert_outcomes(passed=1, failed=1)
    told = "Averaged2d breaks the law synced_running_var: layer.running_var is off in * on rank 0"
    result.stdout.fnmatch_lines([told, "    # torchrun --nproc-per-node 2 THIS_FILE"])
    result.stdout.no_fnmatch_line("Traceback*")


def test_workers_of_xdist_start_ranks_of_their_own(pytester: pytest.Pytester, folder: Path) -> None:
    result = run(pytester, "-n", "2", "--bn-impl=syncs:Sync2d", *STATISTICS)
    result.assert_outcomes(passed=2)


def test_torchs_own_is_skipped_on_a_cpu_with_the_reason(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--bn-impl=torch.nn:SyncBatchNorm", *STATISTICS)
    result.assert_outcomes(skipped=2)
    reason = "*torch.nn.SyncBatchNorm has no CPU path*not tried on ranks: give --bn-device=cuda*"
    result.stdout.fnmatch_lines(["SKIPPED*" + reason])


def test_layers_that_do_not_synchronise_have_no_such_law(pytester: pytest.Pytester) -> None:
    result = run(pytester, "-q", "--co", "--bn-impl=torch.nn:BatchNorm2d")
    assert "test_law[running_var-" in result.stdout.str()
    assert "synced_" not in result.stdout.str()
