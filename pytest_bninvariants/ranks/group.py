"""Join the process group of a distributed run, and leave it when all others have done so."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from pytest_bninvariants.ranks.environment import World

_POLL_SECONDS = 0.002


def default_backend(device: str) -> str:
    """Return the backend for a kind of device: gloo for `cpu`, nccl for `cuda`."""
    backends: dict[str, str] = distributed.Backend.default_device_backend_map
    return backends.get(torch.device(device).type, distributed.Backend.GLOO)


def refuse_unknown_backend(backend: str) -> None:
    """Refuse a backend that this torch does not know, such as a misspelt one.

    Raises:
        ValueError: with those that are accepted.
    """
    known = [name for name in distributed.Backend.backend_list if name not in ("undefined", "mpi")]
    names = [each.partition(":")[2] or each for each in backend.split(",")]
    if not all(name.lower() in known for name in names):
        raise ValueError(
            f"accepted are {', '.join(known)}, or one for each kind of device, as in "
            "'cpu:gloo,cuda:nccl'"
        )


def use_own_device(device: str) -> None:
    """Make an accelerator's device of this rank the current one, if each rank has its own.

    Args:
        device: the kind of device; one with a number is what its user chose.
    """
    kind = torch.device(device)
    if kind.type == "cpu" or kind.index is not None:
        return
    module = torch.get_device_module(kind)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if hasattr(module, "set_device") and local < module.device_count():
        module.set_device(local)


class Membership:
    """This rank's part in the process group of one test.

    Args:
        name: the test's name, the same on all ranks; each run of a test needs another one.
        world: the ranks.
        timeout: how long the others may take to come, and a collective, in seconds.
    """

    def __init__(self, name: str, world: World, timeout: float) -> None:
        self.rank, self.size = world
        self._timeout = timeout
        self._limit = timedelta(seconds=timeout)
        self._joins = not distributed.is_initialized()  # or it is the user's own group
        # a rank that waits on a store's connection blocks whoever else uses it
        self.store = PrefixStore(f"{name}/test", self._connect())
        self._group_store = PrefixStore(f"{name}/group", self._connect())

    def missing_ranks(self) -> list[int]:
        """Wait for the other ranks; return those that do not come in time."""
        keys = [f"coming/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], "")
        wait_for_keys(self.store, keys, self._timeout)
        return [rank for rank, key in enumerate(keys) if not self.store.check([key])]

    def join(self, backend: str) -> None:
        """Initialise the process group, unless there is one."""
        if self._joins:
            distributed.init_process_group(
                backend,
                store=self._group_store,
                rank=self.rank,
                world_size=self.size,
                timeout=self._limit,
            )

    def leave(self, seconds: float) -> None:
        """Leave the group once all ranks are about to, or after a while.

        A rank that left earlier would break off what it still sends to the others.
        """
        self.store.set(f"leaving/{self.rank}", "")
        wait_for_keys(self.store, [f"leaving/{rank}" for rank in range(self.size)], seconds)
        if self._joins and distributed.is_initialized():
            distributed.destroy_process_group()

    def _connect(self) -> Store:
        store: Store = next(iter(rendezvous("env://", timeout=self._limit)))[0]
        return store


def wait_for_keys(store: Store, keys: list[str], seconds: float, *, unless: str = "") -> bool:
    """Wait until other ranks have set keys; return whether they did in time.

    Args:
        store: the store.
        keys: the keys.
        seconds: how long to wait.
        unless: a key with which the wait ends, too.
    """
    end = time.monotonic() + seconds
    while not store.check(keys):
        if time.monotonic() > end or (unless and store.check([unless])):
            return store.check(keys)
        time.sleep(_POLL_SECONDS)
    return True
