"""What `@pytest.mark.ranks` asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_bninvariants.catalogue import RANKS
from pytest_bninvariants.checks import is_int, is_number
from pytest_bninvariants.diagnosis.did_you_mean import did_you_mean_option
from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.plugin.markers import as_written

RAN_ELSEWHERE = pytest.StashKey[bool]()
"""Marks tests that run on ranks which this session starts, and not in its own process."""

JOINED = pytest.StashKey[bool]()
"""Marks tests that run in a process group which this process has joined for them."""

_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksRequest:
    """What a test's marker asks for.

    Args:
        size: how many ranks.
        backend: the process group's backend.
        timeout: seconds that the test may take on its ranks, once they have found each other.
        device: the kind of device that it runs on, by its `bn_device`; `cpu` without that.
        written: the marker as its user wrote it.
    """

    size: int
    backend: str
    timeout: float
    device: str
    written: str


def runs_on_ranks(item: pytest.Item) -> bool:
    """Tell whether a test has the marker; a doctest has none, though its module may."""
    is_doctest = isinstance(item, pytest.DoctestItem)
    return not is_doctest and item.get_closest_marker("ranks") is not None


def late_marks(item: pytest.Item) -> Iterator[str]:
    """Yield what is wrong with a marker that a fixture added: the test runs on one process."""
    mark = item.get_closest_marker("ranks") if runs_on_ranks(item) else None
    if mark is not None and JOINED not in item.stash:
        yield f"{as_written(mark)} was added while the test ran, too late to start ranks"


def read_request(item: pytest.Item) -> RanksRequest:
    """Return what a test's marker asks for; the closest one counts.

    Raises:
        GateError: if an argument is wrong, or this torch has no torch.distributed.
    """
    mark = item.get_closest_marker("ranks")
    assert mark is not None
    written = as_written(mark)
    if not isinstance(item, pytest.Function):
        raise GateError(f"{written} is for tests that are Python functions; this is a {item!r}")
    for option in mark.kwargs:
        if option not in RANKS.options:
            hint = did_you_mean_option(option, RANKS.options)
            raise GateError(
                f"@pytest.mark.ranks has no option {option}={hint} "
                f"(accepted: {', '.join(RANKS.options)})"
            )
    size, timeout = _read_size(mark), _read_timeout(mark.kwargs.get("timeout", _TIMEOUT))
    callspec = getattr(item, "callspec", None)
    device = str(callspec.params.get("bn_device", "cpu") if callspec else "cpu")
    backend = _read_backend(mark.kwargs.get("backend"), device, written)
    return RanksRequest(size=size, backend=backend, timeout=timeout, device=device, written=written)


def _read_size(mark: pytest.Mark) -> int:
    size = mark.args[0] if len(mark.args) == 1 else None
    if is_int(size) and size >= 1:
        return size
    given = ", ".join(describe(value) for value in mark.args) or "nothing"
    raise GateError(
        "@pytest.mark.ranks takes the number of ranks, an int from 1 on, as in ranks(2); "
        f"got {given}"
    )


def _read_timeout(timeout: Any) -> float:
    if is_number(timeout) and 0 < timeout < float("inf"):
        return float(timeout)
    raise GateError(
        "@pytest.mark.ranks(timeout=...) takes the seconds that the test may take, above 0; "
        f"got {describe(timeout)}"
    )


def _read_backend(backend: Any, device: str, written: str) -> str:
    from torch import distributed

    if not distributed.is_available():
        raise GateError(f"{written} needs torch.distributed, and this torch is built without it")
    from pytest_bninvariants.ranks.group import default_backend, refuse_unknown_backend

    if backend is None:
        return default_backend(device)
    if not isinstance(backend, str):
        raise GateError(
            "@pytest.mark.ranks(backend=...) takes a name such as 'gloo' or 'nccl'; "
            f"got {describe(backend)}"
        )
    try:
        refuse_unknown_backend(backend)
    except ValueError as error:
        raise GateError(f"@pytest.mark.ranks(backend={backend!r}): {error}") from None
    return backend
