"""Run marked tests in this process, which is one rank of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.plugin.outcomes.raise_at_test import function_of, raise_at
from pytest_bninvariants.plugin.ranks.request import (
    JOINED,
    RanksRequest,
    read_request,
    runs_on_ranks,
)
from pytest_bninvariants.plugin.ranks.same_examples import (
    AnotherRankFailed,
    draws_examples,
    same_examples,
)
from pytest_bninvariants.ranks.environment import World

if TYPE_CHECKING:
    from pytest_bninvariants.ranks.group import Membership

OF_ANOTHER_RANK = "bninvariants_of_another_rank"
"""The attribute of a report whose failure is that another rank failed."""

FAILED = pytest.StashKey[bool]()
_SEED = pytest.StashKey[object]()


class RankMember:
    """The hooks that run tests in the ranks which a launcher, such as torchrun, has started.

    Args:
        world: these ranks.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._runs: Counter[str] = Counter()
        self.membership: Membership | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Any:
        """Run a marked test once: a plugin that reruns it would do so on this rank alone."""
        if not runs_on_ranks(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        runtestprotocol(item, nextitem=nextitem)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Join the process group before the test's fixtures are made."""
        if not runs_on_ranks(item):
            return
        try:
            request = read_request(item)
            self._refuse_other_number(request)
            self.membership = self._join(item, request)
        except GateError as error:
            raise_at(function_of(item), error, {})
        item.stash[JOINED] = True
        self.joined()
        if draws_examples(item):
            self._draw_same_examples(item, self.membership, request.timeout)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Leave the process group when the test's fixtures have ended."""
        if not runs_on_ranks(item):
            return (yield)
        try:
            return (yield)
        finally:
            vars(item).pop("runtest", None)
            self.finish(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note whether the test failed, whose failure it is, and what hypothesis drew from."""
        report = yield
        if runs_on_ranks(item) and not report.passed:
            item.stash[FAILED] = True
            if call.excinfo is not None and _is_of_another_rank(call.excinfo.value):
                setattr(report, OF_ANOTHER_RANK, True)
            if _SEED in item.stash and self._world.rank == 0:
                text = f"all ranks drew from @hypothesis.seed({item.stash[_SEED]})"
                report.sections.append(("hypothesis on ranks", text))
        return report

    def begin(self, request: RanksRequest) -> float:
        """Make sure that the test ends; return how long a collective may take, in seconds."""
        raise NotImplementedError

    def joined(self) -> None:
        """Note that all ranks have found each other."""

    def finish(self, item: pytest.Item) -> None:
        """Leave the process group."""
        raise NotImplementedError

    def _refuse_other_number(self, request: RanksRequest) -> None:
        if request.size != self._world.size:
            raise GateError(
                f"{request.written} asks for {request.size} ranks, and this run has "
                f"{self._world.size} (WORLD_SIZE={self._world.size} in the environment): start it "
                f"with {request.size} processes, or without a launcher"
            )

    def _join(self, item: pytest.Item, request: RanksRequest) -> Membership:
        from pytest_bninvariants.ranks.group import Membership, use_own_device

        use_own_device(request.device)
        self._runs[item.nodeid] += 1
        name = f"{item.nodeid}/{self._runs[item.nodeid]}"
        membership = Membership(name, self._world, self.begin(request))
        missing = membership.missing_ranks()
        if missing:
            ranks = ", ".join(map(str, missing))
            raise GateError(f"rank {ranks} did not reach this test within {request.timeout:g} s")
        membership.join(request.backend)
        return membership

    def _draw_same_examples(self, item: Any, membership: Membership, seconds: float) -> None:
        runtest = item.runtest

        def run() -> None:
            __tracebackhide__ = True
            with same_examples(item, membership, seconds) as exchange:
                item.stash[_SEED] = exchange.seed
                try:
                    runtest()
                except Exception:
                    if exchange.refusal is None:
                        raise
                if exchange.refusal is not None:  # hypothesis may have made something else of it
                    raise_at(function_of(item), exchange.refusal, {})

        item.runtest = run


def _is_of_another_rank(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_of_another_rank, error.exceptions))
    return isinstance(error, AnotherRankFailed)
