"""Sessions of pytest on a device: the tests that take `bn_device`, and the conformance kit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from tests.benchmarks.device.report import Report

ROOT = Path(__file__).parents[3]
LAYERS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
VALUES = "training_output,eval_output,running_mean,running_var,momentum,*_gradient,many_batches"
"""The laws of values, for a layer that may lay its output out as it likes."""


class ChannelsLast2d(nn.BatchNorm2d):
    """A layer that lets torch normalise each batch in channels_last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise a copy that lies in this format."""
        return super().forward(x.contiguous(memory_format=torch.channels_last))


def suite(report: Report) -> None:
    """Run the tests of this repository that take a device."""
    _run(report, "tests/devices", "tests/devices")


def kit(report: Report) -> None:
    """Run the laws on torch's layers."""
    for name in LAYERS[:1] if report.tiny else LAYERS:
        _run_kit(report, name, f"torch.nn:{name}")


def kit_without_cudnn(report: Report) -> None:
    """Run them where torch's own kernels normalise."""
    without = ("-p", "tests.benchmarks.device.without_cudnn")
    for name in LAYERS[1:2] if report.tiny else LAYERS:
        _run_kit(report, f"{name} without cuDNN", f"torch.nn:{name}", *without)


def kit_in_channels_last(report: Report) -> None:
    """Run the laws of values in channels_last, with cuDNN and without."""
    layer = f"{__name__}:{ChannelsLast2d.__name__}"
    for name, without in (
        ("channels_last", ()),
        ("channels_last without cuDNN", ("-p", "tests.benchmarks.device.without_cudnn")),
    ):
        _run_kit(report, name, layer, *without, laws=VALUES)


def _run_kit(report: Report, name: str, layer: str, *options: str, laws: str = "*") -> None:
    effort = ("--bn-examples=1", "--bn-dtype=float32", "--bn-laws=running_mean,running_var")
    kit = ("--pyargs", "pytest_bninvariants.conformance", f"--bn-impl={layer}")
    wanted = effort if report.tiny else (f"--bn-laws={laws}", "--bn-examples=30")
    _run(report, f"the kit: {name}", *kit, *wanted, *options)


def _run(report: Report, what: str, *arguments: str) -> None:
    cores = 1 if report.tiny else min(os.cpu_count() or 1, 8)  # each has a context on the device
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    command.append(f"--bn-device={report.device}")
    if report.device.startswith("simdev"):
        command += ["-p", "tests.simulated_device.device"]
    if cores > 1:
        command += ["-n", str(cores)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = (done.stderr + done.stdout).strip().splitlines()
    told = [line for line in lines if line.startswith("bn conformance:")] or lines[-1:]
    report.check(f"{what}: {' '.join(told)}", holds=done.returncode == 0)
    if done.returncode:
        report.say("\n".join(["```text", *lines[-60:], "```"]))
