"""Start the processes of the ranks with torch's own launcher, and end them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

from pytest_bninvariants.ranks.environment import ADDRESS, rank_variables
from pytest_bninvariants.ranks.stacks import STACK_SIGNAL

_END_SECONDS = 5
_IS_WINDOWS = os.name == "nt"  # where torch is built without libuv


class RankProcesses:
    """One process for each rank, in a session of its own.

    Args:
        size: how many ranks there are.
        arguments: Python's arguments; each rank gets the same.
        folder: an existing folder for the launcher's files.
    """

    def __init__(self, size: int, arguments: Sequence[str], folder: str) -> None:
        self._store = TCPStore(
            ADDRESS, 0, is_master=True, wait_for_workers=False, use_libuv=not _IS_WINDOWS
        )
        with _kept_signal_handlers():
            launched: Any = start_processes(
                name="rank",
                entrypoint=sys.executable,
                args={rank: tuple(arguments) for rank in range(size)},
                envs={rank: rank_variables(rank, size, self._store.port) for rank in range(size)},
                logs_specs=DefaultLogsSpecs(log_dir=folder),
            )
        self._launched = launched
        self._processes: dict[int, subprocess.Popen[bytes]] = {
            rank: handler.proc for rank, handler in launched.subprocess_handlers.items()
        }

    def post(self, key: str, text: str) -> None:
        """Set a key of the store that this process serves and the ranks read."""
        self._store.set(key, text)

    def exit_code(self, rank: int) -> int | None:
        """Return a rank's exit code, negative if a signal ended it; None while it runs."""
        return self._processes[rank].poll()

    def request_stack(self, rank: int) -> bool:
        """Ask a rank to write its stack; return whether it can be asked."""
        if STACK_SIGNAL is None or self.exit_code(rank) is not None:
            return False
        self._processes[rank].send_signal(STACK_SIGNAL)
        return True

    def kill(self, rank: int) -> None:
        """End a rank, and the processes that it has started and that still run."""
        process = self._processes[rank]
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):  # macOS: all of them are zombies
                os.killpg(process.pid, signal.SIGKILL)
        elif process.poll() is None:
            process.kill()
        with suppress(subprocess.TimeoutExpired):  # in an uninterruptible call of the kernel
            process.wait(_END_SECONDS)

    def close(self) -> None:
        """End all ranks, and the launcher."""
        for rank in self._processes:
            self.kill(rank)
        self._launched.close()


@contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    """Undo that torch's launcher replaces the handlers of this process, Ctrl-C's among them."""
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {each: signal.getsignal(each) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            if signal.getsignal(each) is not handler:
                signal.signal(each, handler)
