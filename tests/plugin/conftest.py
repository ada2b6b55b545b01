from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.plugin.sessions import Sessions


@pytest.fixture
def sessions(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sessions]:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so small models only wait for other threads
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Sessions(pytester)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def _compiler_is_imported() -> None:
    """Have what `torch.compile` imports outlive the session that compiles."""
    torch.compile(torch.neg, backend="eager")(torch.ones(1))
