"""What the tests share: sessions in this process, a small model, ranks, and an unpatched torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

# threads that share small tensors mostly wait for each other, the more so where workers share cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

# pytester forgets modules that a session inside this process imported first. These must live on:
# most keep state, or cannot be imported twice.
import hypothesis.extra.numpy  # noqa: F401
import pytest
import torch
import torch._dynamo
from hypothesis import settings
from torch import Tensor, nn

import pytest_bninvariants.invariants.guard
import pytest_bninvariants.plugin.guarded_call  # noqa: F401
from pytest_bninvariants import guard_registry
from pytest_bninvariants.guard_registry import Finding
from pytest_bninvariants.instrumentation import installation, observer_api
from tests.engine import Net, everything_wrapped
from tests.ranks.runs import run_script
from tests.ranks.warm_python import WarmPython

pytest_plugins = ["pytester"]
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let sessions inside a test begin with Python's own filters, not with those of this suite."""
    for item in items:
        if "pytester" in getattr(item, "fixturenames", ()):
            for rule in ("default", "ignore::ResourceWarning"):
                item.add_marker(pytest.mark.filterwarnings(rule))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give one worker a file whose tests share a costly fixture, so that it is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class OneWorkerForSharedFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if shares_a_fixture(config.rootpath / file) else nodeid

    return OneWorkerForSharedFixtures(config, log)


@cache
def shares_a_fixture(file: Path) -> bool:
    """Tell whether a file of tests has a fixture for all of them, and none within a string."""
    return re.search(r'^@pytest\.fixture\(scope="module"', file.read_text(), re.M) is not None


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """A Python that has imported torch, for commands in processes of their own."""
    python = WarmPython()
    yield python
    python.close()


@pytest.fixture
def net() -> Net:
    """A model in eval, whose statistics are not the initial ones."""
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(4, 2, 5))
    return model.eval()


@pytest.fixture
def batch() -> Tensor:
    return torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def torch_state() -> Callable[[], dict[str, Any]]:
    return everything_wrapped


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was() -> Iterator[None]:
    """Let every test fail that leaves something of a guard behind."""
    compiler = sys.modules.get("torch._dynamo.convert_frame")
    if getattr(compiler, "FRAME_COUNTER", 0):
        torch._dynamo.reset()  # it compiles a function anew only so many times
    before = everything_wrapped()
    methods = {name: vars(nn.Module)[name] for name in ("_call_impl", "compile", "__setattr__")}
    setattr_ = methods["__setattr__"]
    code = setattr_.__code__
    functions = torch.batch_norm, torch.instance_norm
    yield
    after = everything_wrapped()
    for observer in observer_api.active_observers:  # of a guard that a failed test left open
        installation.discard(observer)
    for name, method in methods.items():  # a test that fails must not take the others with it
        setattr(nn.Module, name, method)
    setattr_.__code__ = code
    torch.batch_norm, torch.instance_norm = functions
    assert after == before


@pytest.fixture
def unreported() -> dict[int, str]:
    """What is to be reported of guards that were made and not entered."""
    return guard_registry.complaints


@pytest.fixture
def findings() -> list[Finding]:
    """What guards found and no report has told; a test that leaves any fails."""
    assert guard_registry.findings is not None
    return guard_registry.findings


@pytest.fixture
def ranks(request: pytest.FixtureRequest, warm_python: WarmPython) -> Callable[..., list[Any]]:
    """Run a script beside the test in two processes that find each other."""
    folder = request.path.parent
    return lambda script, *arguments: run_script(warm_python, folder / script, *arguments)
