"""Sessions of ranks that somebody else started, as `torchrun --nproc-per-node 2 -m pytest` does."""

from __future__ import annotations

import faulthandler
import io
import os
import sys
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import pytest

from pytest_bninvariants.plugin.ranks.member import FAILED, RankMember, replace_reporter
from pytest_bninvariants.plugin.ranks.request import RanksRequest
from pytest_bninvariants.ranks.environment import World
from pytest_bninvariants.ranks.supervision import GRACE_SECONDS

_SPARE_SECONDS = 30.0  # within which a collective that ran into the timeout is reported
_CONNECT_SECONDS = 20.0
_END_SECONDS = 300.0  # that a rank waits for the others' last tests
_FILES = ("xmlpath", "log_file")  # options that name a file to write


def configure_launched(config: pytest.Config, world: World) -> None:
    """Prepare the session of one rank, if it is not one that a test's marker started."""
    plugins = config.pluginmanager
    if world.size > 1 and not any(isinstance(each, RankMember) for each in plugins.get_plugins()):
        stderr = os.dup(2)  # pytest captures nothing yet
        config.add_cleanup(lambda: os.close(stderr))
        plugins.register(LaunchedMember(world, stderr), "bninvariants-rank-member")
        plugins.register(EndTogether(world), "bninvariants-end-together")
        if world.rank > 0:
            _name_own_files(config, world.rank)
            plugins.register(ShowFailures(world.rank), "bninvariants-show-failures")


def _name_own_files(config: pytest.Config, rank: int) -> None:
    """Let this rank write its files beside those of rank 0, as in report.rank1.xml."""
    for option in _FILES:
        name = getattr(config.option, option, None)
        if name:
            path = Path(name)
            own = path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
            setattr(config.option, option, str(own))


class LaunchedMember(RankMember):
    """Run marked tests on the ranks that a launcher has started.

    Args:
        world: these ranks.
        stderr: a file descriptor that pytest does not capture.
    """

    def __init__(self, world: World, stderr: int) -> None:
        super().__init__(world)
        self._stderr = stderr
        self._timeout = 0.0

    def begin(self, request: RanksRequest) -> float:
        """Return how long a collective may take."""
        self._timeout = request.timeout
        return request.timeout

    def joined(self) -> None:
        """Have this process end, with its stack, if the test never ends."""
        seconds = self._timeout + _SPARE_SECONDS
        faulthandler.dump_traceback_later(seconds, file=self._stderr, exit=True)

    def finish(self, item: pytest.Item) -> None:
        """Leave the process group once the others do, or soon if the test failed."""
        membership, self.membership = self.membership, None
        if membership is not None:
            membership.leave(GRACE_SECONDS if FAILED in item.stash else self._timeout)
        faulthandler.cancel_dump_traceback_later()


class EndTogether:
    """End a session with those of the other ranks.

    torchrun ends all ranks as soon as one ends with a failure.

    Args:
        world: the ranks.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Wait for the other ranks, once this one has reported."""
        if "MASTER_ADDR" not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
            return
        from torch.distributed.rendezvous import rendezvous

        from pytest_bninvariants.ranks.group import wait_for_keys

        ranks = range(self._world.size)
        try:
            limit = timedelta(seconds=_CONNECT_SECONDS)
            store = next(iter(rendezvous("env://", timeout=limit)))[0]
            attempt = f"bninvariants/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
            store.set(f"{attempt}/end/{self._world.rank}", "")
            wait_for_keys(store, [f"{attempt}/end/{rank}" for rank in ranks], _END_SECONDS)
        except (RuntimeError, ValueError):  # nobody serves a store, or it went with its rank
            return


class ShowFailures:
    """Keep a rank's terminal quiet, but for its failures.

    Args:
        rank: the rank.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._text = io.StringIO()
        self._stdout: TextIO = sys.stdout

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Replace the terminal's reporter."""
        self._stdout = sys.stdout
        replace_reporter(config, pytest.TerminalReporter(config, self._text))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> Generator[None, Any, Any]:
        """Write the summary if tests failed, and everything if the session broke off."""
        start = self._text.tell()
        result = yield
        quiet = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if session.exitstatus not in quiet:
            failed = session.exitstatus == pytest.ExitCode.TESTS_FAILED
            lines = self._text.getvalue()[start if failed else 0 :].strip().splitlines()
            self._stdout.write("".join(f"rank {self._rank}: {line}\n" for line in lines))
            self._stdout.flush()
        return result
