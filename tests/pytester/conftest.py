from __future__ import annotations

import sys

import pytest
import torch

from tests.pytester.sessions import Sessions


@pytest.fixture
def sessions(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Sessions:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return Sessions(pytester)


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet() -> None:
    """Forget what other tests compiled: after that "nothing ran" is no failure."""
    convert_frame = sys.modules.get("torch._dynamo.convert_frame")
    if convert_frame is not None and getattr(convert_frame, "FRAME_COUNTER", 0):
        torch._dynamo.reset()


@pytest.fixture(scope="session")
def _compiler_is_imported() -> None:
    """Have what `torch.compile` imports outlive the session that compiles."""
    torch.compile(torch.neg, backend="eager")(torch.ones(1))
