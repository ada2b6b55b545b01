"""Run each file of `simulated_device` in a process of its own, where the device is known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from tests.simulated_device.backend.build import find_compiler

ROOT = Path(__file__).parents[1]
FILES = sorted(Path(__file__).with_name("simulated_device").glob("test_*.py"))
OLDEST = "2.13"  # torch's interface for backends changes from version to version


@pytest.mark.skipif(
    find_compiler() is None and not os.environ.get("CI"), reason="there is no C++ compiler"
)
@pytest.mark.skipif(
    TorchVersion(torch.__version__) < OLDEST,
    reason=f"the simulated device is written for torch {OLDEST} and newer",
)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_on_the_simulated_device(file: Path) -> None:
    hazards_warn = ("-W", "default::pytest_bninvariants.InvariantHazard")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *hazards_warn, str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "SIMULATED_DEVICE": "1"},
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
