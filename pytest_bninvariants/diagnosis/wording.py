"""Parts of sentences about several layers or tensors."""

from __future__ import annotations


def name_list(names: list[str]) -> str:
    """Return names as a sentence has them, the first two of many."""
    named = [name or "the model" for name in names]
    if len(named) <= 2:
        return " and ".join(named)
    return f"{named[0]}, {named[1]} and {len(named) - 2} more"


def keep_in_eval(names: str, tool: str | None) -> str:
    """Return what to do about layers that are in training mode, and that a tool may have put there.

    Args:
        names: the layers', as a sentence has them.
        tool: the library function that acted, if one did.
    """
    if tool is not None:
        return f"override train() on the model, so that it ends with .eval() on {names}"
    return f"call .eval() on {names} after every model.train(), or override train() on the model"


def few(texts: list[str], most: int = 3) -> str:
    """Join texts with semicolons, the first few of many."""
    more = len(texts) - most
    return "; ".join([*texts[:most], *([f"and {more} more"] if more > 0 else [])])


def one_or_many(names: list[str], one: str, many: str) -> str:
    """Return the first word for one name, the second for several."""
    return one if len(names) == 1 else many


def span(counts: list[int], noun: str, nouns: str) -> str:
    """Return counts with their noun, such as `1 batch` or `1 to 3 batches`."""
    least, most = min(counts), max(counts)
    if least < most:
        return f"{least} to {most} {nouns}"
    return f"{most} {noun if most == 1 else nouns}"


_LISTED = 8


def listing(names: list[str]) -> str:
    """Return names as a sentence has them, the first few of many."""
    shown_names = ", ".join(repr(name) for name in names[:_LISTED])
    more = len(names) - _LISTED
    return f"{shown_names} and {more} more" if more > 0 else shown_names
