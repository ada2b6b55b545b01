"""Exchange what ranks found; where one of them cannot judge, none does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import distributed

from pytest_bninvariants.errors import GateError, Refusal, describe

T = TypeVar("T")


class _FoundOrReason(NamedTuple):
    """What a rank tells the others.

    Args:
        found: what it found; None if it cannot judge.
        refusal: why it cannot judge; None if it can.
    """

    found: Any
    refusal: str | None


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that judge together.

    Args:
        group: their process group; None: all processes.

    Raises:
        GateError: if there is no distributed run, the group is none, or this process is not in it.
    """

    group: distributed.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if not is_distributed():
            raise GateError("there is no distributed run: torch.distributed is not initialised")
        if not _is_group(self.group):
            raise GateError(
                "group= takes a process group, as torch.distributed.new_group() returns it; got "
                f"{describe(self.group)}"
            )
        if distributed.get_rank(self.group) < 0:
            raise GateError(f"rank {distributed.get_rank()} is not in group=: call it on its ranks")

    @property
    def numbers(self) -> list[int]:
        """Return the numbers of the ranks in the whole run."""
        if self.group is None:
            return list(range(distributed.get_world_size()))
        return list(distributed.get_process_group_ranks(self.group))

    def exchange(self, find: Callable[[], T]) -> list[T]:
        """Return what a function returns on each rank; all ranks must call this.

        Args:
            find: the function; it must start no collective that another rank may not start.

        Raises:
            Refusal: on each rank, if the function raised on any of them.
        """
        error: Exception | None = None
        try:
            message = _FoundOrReason(find(), None)
        except Exception as raised:  # whatever it is, the other ranks wait for an answer
            error = raised
            message = _FoundOrReason(None, describe_error(raised))
        messages = self._gather(message)
        refusals = {
            number: each.refusal
            for number, each in zip(self.numbers, messages, strict=True)
            if each.refusal is not None
        }
        if refusals:
            raise Refusal(_describe(refusals, len(messages))) from error
        return [each.found for each in messages]

    def refuse(self, reason: str) -> None:
        """Tell the other ranks, which exchange what they found, that this one cannot judge."""
        self._gather(_FoundOrReason(None, reason))

    def _gather(self, message: _FoundOrReason) -> list[_FoundOrReason]:
        gathered: list[Any] = [None] * distributed.get_world_size(self.group)
        try:
            distributed.all_gather_object(gathered, message, group=self.group)
        except RuntimeError as error:
            if "Numpy is not available" in str(error):  # torch reads what others sent by NumPy
                raise Refusal(
                    "torch.distributed needs NumPy to exchange what the ranks found: "
                    "pip install 'pytest-bninvariants[ranks]'"
                ) from error
            raise Refusal(
                "the ranks could not exchange what they found; each must reach this call, and none "
                f"may have ended: {error}"
            ) from error
        return gathered


def _is_group(value: object) -> bool:
    """Tell whether a value stands for a group, or for one that this process is not in."""
    outside = distributed.GroupMember.NON_GROUP_MEMBER
    return value is None or value == outside or isinstance(value, distributed.ProcessGroup)


def is_distributed() -> bool:
    """Tell whether this process is a rank of a distributed run."""
    return distributed.is_available() and distributed.is_initialized()


def describe_error(error: BaseException) -> str:
    """Return what an error says, with its type unless it is a gate's own."""
    return str(error) if isinstance(error, GateError) else f"{type(error).__name__}: {error}"


def _describe(refusals: dict[int, str], ranks: int) -> str:
    """Say which ranks cannot judge, and why; the same on each rank."""
    reasons = dict.fromkeys(refusals.values())
    if len(refusals) == ranks and len(reasons) == 1:
        return next(iter(reasons))
    told = [
        f"{rank_list([n for n, why in refusals.items() if why == reason])} cannot judge: {reason}"
        for reason in reasons
    ]
    return "; ".join(told) + ("" if len(refusals) == ranks else ", so no rank does")


def rank_list(numbers: list[int]) -> str:
    """Return ranks for use in a sentence, such as `rank 1` or `ranks 0 and 2`."""
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    return f"ranks {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
