"""Sessions of ranks that somebody else started, as `torchrun --nproc-per-node 2 -m pytest` does."""

from __future__ import annotations

import faulthandler
import io
import os
import sys
from collections.abc import Callable, Generator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import pytest

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.plugin.ranks.member import FAILED, RankMember
from pytest_bninvariants.plugin.ranks.request import RanksRequest
from pytest_bninvariants.ranks.environment import World
from pytest_bninvariants.ranks.supervision import GRACE_SECONDS

_SPARE_SECONDS = 30.0  # within which a collective that ran into the timeout is reported
_CONNECT_SECONDS = 20.0
_END_SECONDS = 300.0  # that a rank waits for the others' last tests
_FILES = ("xmlpath", "log_file")  # options that name a file to write


def configure_launched(config: pytest.Config, world: World) -> bool:
    """Prepare the session of one rank, if it is not one that a test's marker started.

    Return whether it is, and so sends its reports to another session.
    """
    plugins = config.pluginmanager
    if any(isinstance(each, RankMember) for each in plugins.get_plugins()):
        return True
    stderr = os.dup(2)  # pytest captures nothing yet
    config.add_cleanup(lambda: os.close(stderr))
    plugins.register(LaunchedMember(world, stderr), "bninvariants-rank-member")
    if world.size > 1:
        terminal = QuietTerminal(config, world.rank)
        end = EndTogether(world, terminal.show_failures)
        plugins.register(end, "bninvariants-end-together")
        if world.rank > 0:
            _name_own_files(config, world.rank)
            plugins.register(terminal, "bninvariants-quiet-terminal")
    return False


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
        """Return how long a collective may take.

        Raises:
            GateError: in a worker of xdist.
        """
        if "PYTEST_XDIST_WORKER" in os.environ:
            raise GateError(
                f"{request.written} under a launcher and xdist: the workers of a rank would all "
                "be that rank; leave out -n"
            )
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
    """End a session with those of the other ranks, and show its failures then.

    torchrun ends all ranks as soon as one ends with a failure.

    Args:
        world: the ranks.
        show: writes what this rank has to say, once the others have written.
    """

    def __init__(self, world: World, show: Callable[[], None]) -> None:
        self._world = world
        self._show = show

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Wait for the other ranks, once this one has reported."""
        store = self._connect()
        self._wait_for_others(store, "reported")
        self._show()
        self._wait_for_others(store, "shown")

    def _connect(self) -> Any:
        """Return a connection to the launcher's store; None if nobody serves one."""
        if "MASTER_ADDR" not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
            return None
        from torch.distributed.rendezvous import rendezvous

        try:
            limit = timedelta(seconds=_CONNECT_SECONDS)
            return next(iter(rendezvous("env://", timeout=limit)))[0]
        except (RuntimeError, ValueError):
            return None

    def _wait_for_others(self, store: Any, event: str) -> None:
        if store is None:
            return
        from pytest_bninvariants.ranks.group import wait_for_keys

        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        keys = [f"bninvariants/{attempt}/{event}/{rank}" for rank in range(self._world.size)]
        with suppress(RuntimeError):  # the store went with its rank
            store.set(keys[self._world.rank], "")
            wait_for_keys(store, keys, _END_SECONDS)


class QuietTerminal:
    """Keep a rank's terminal quiet until its session has ended.

    Args:
        config: the session's configuration, whose reporter is still to come.
        rank: the rank.
    """

    def __init__(self, config: pytest.Config, rank: int) -> None:
        self._rank = rank
        self._text = io.StringIO()
        self._stdout: TextIO = sys.stdout  # pytest captures nothing yet
        self._config = config
        self._reporter: pytest.TerminalReporter | None = None
        self._failures = ""

    def pytest_plugin_registered(self, plugin: object, plugin_name: str) -> None:
        """Replace the terminal's reporter."""
        if plugin_name == "terminalreporter" and plugin is not self._reporter:
            self._reporter = pytest.TerminalReporter(self._config, self._text)
            self._config.pluginmanager.unregister(plugin)
            self._config.pluginmanager.register(self._reporter, plugin_name)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Keep the summary if tests failed, and everything if the session broke off."""
        start = self._text.tell()
        result = yield
        if session.exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            failed = session.exitstatus == pytest.ExitCode.TESTS_FAILED
            self._failures = self._text.getvalue()[start if failed else 0 :].strip()
        return result

    def show_failures(self) -> None:
        """Write the failures, each line after the rank."""
        lines = self._failures.splitlines()
        self._stdout.write("".join(f"rank {self._rank}: {line}\n" for line in lines))
        self._stdout.flush()
