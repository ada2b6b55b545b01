"""Make the simulated device known, in sessions that are for it alone.

Once it is known, `torch.accelerator` and libraries that ask it prefer it, so other tests run
without it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import torch

IS_WANTED = "SIMULATED_DEVICE" in os.environ
collect_ignore_glob = [] if IS_WANTED else ["test_*.py"]
if IS_WANTED:
    import tests.simulated_device.device  # noqa: F401
    from tests.plugin.conftest import sessions  # noqa: F401


@pytest.fixture(autouse=True)
def _small_and_repeatable() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    gc.collect()
