"""Word sentences, and parts of them, about several layers or tensors."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_bninvariants import run_config
from pytest_bninvariants.verdict import Place

PUT_IN_TRAINING = "put in training mode by"
NOT_STOPPED = "requires_grad=False does not stop running statistics"

FIND_FIRST_BAD_BATCH = (
    "look for the first batch with such values; where a step is skipped, as GradScaler does, put "
    "the statistics back, too"
)
"""How to mend statistics that are not finite."""

_QUOTED = 8
_CLAUSES = 3


def first_few(texts: Sequence[str], most: int) -> str:
    """Join texts with commas, and count those that are left out.

    Args:
        texts: the texts.
        most: how many to show at most.
    """
    more = len(texts) - most
    shown = ", ".join(texts[:most])
    return f"{shown} and {more} more" if more > 0 else shown


def name_list(names: Sequence[str]) -> str:
    """Return names for use in a sentence: one or two, or the first two of many."""
    named = [name or "the model" for name in names]
    return " and ".join(named) if len(named) == 2 else first_few(named, 2)


def quoted_list(names: Sequence[str]) -> str:
    """Return names in quotes, the first few of many."""
    return first_few([repr(name) for name in names], _QUOTED)


def clauses(texts: Sequence[str]) -> str:
    """Join parts of a sentence with semicolons, the first few of many."""
    more = len(texts) - _CLAUSES
    rest = [f"and {more} more"] if more > 0 else []
    return "; ".join([*texts[:_CLAUSES], *rest])


def one_or_many(names: Sequence[str], one: str, many: str) -> str:
    """Return the first word for one name, the second for several."""
    return one if len(names) == 1 else many


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 test` or `2 tests`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def span(counts: Sequence[int], noun: str, nouns: str) -> str:
    """Return counts with their noun, such as `1 batch` or `1 to 3 batches`."""
    least, most = min(counts), max(counts)
    if least < most:
        return f"{least} to {most} {nouns}"
    return f"{most} {noun if most == 1 else nouns}"


def flipped(names: Sequence[str]) -> str:
    """Return the part of a sentence that says how layers changed mode before they normalised."""
    return f"{one_or_many(names, 'was', 'were')} in eval, then put in training mode, and"


def keep_in_eval(names: Sequence[str], place: Place | None = None) -> str:
    """Return how to keep layers in eval.

    Args:
        names: their names.
        place: where they were put in training mode, if that was seen. If a library did it, the user
            cannot edit that line.
    """
    listed = name_list(names)
    if place is not None and place.tool is not None:
        return f"override train() on the model, so that it ends with .eval() on {listed}"
    return f"call .eval() on {listed} after every model.train(), or override train() on the model"


def spare_recomputation(names: Sequence[str]) -> str:
    """Return how to keep activation checkpointing from updating layers a second time."""
    its = one_or_many(names, "its", "their")
    return (
        "leave BN layers out of what is checkpointed, or run the recomputation with "
        f"{its} momentum at 0"
    )


def name_the_writer() -> str:
    """Return how to find the line that wrote, or to use it if this run names it already."""
    if run_config.current.traces:
        return "change the line that --bn-trace names"
    return "run this test with --bn-trace, which names the operator and the line"


def describe_swap(name: str, before: str, now: str | None) -> str:
    """Return a clause that says which module took a name.

    Args:
        name: the name; empty for the model itself.
        before: the class name of the module that had it.
        now: the class name of the one that has it now; None if none has.
    """
    return f"{name or 'the model'} was {before} and {is_now(now)}"


def is_now(kind: str | None) -> str:
    """Return the verb and the object of a clause that says what a layer is now, by class name."""
    return "is gone" if kind is None else f"is another module now: {kind}"


def give_own_memory(owner: str, its: str) -> str:
    """Return how to separate tensors that share memory.

    Args:
        owner: what needs its own memory, for use in a sentence.
        its: the possessive pronoun for it.
    """
    return (
        f"give {owner} {its} own memory: copy.deepcopy(model), or load "
        "copy.deepcopy(other.state_dict())"
    )
